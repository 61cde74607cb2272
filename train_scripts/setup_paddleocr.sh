#!/usr/bin/env bash
# Makes an environment of its own for reward workers that read with PaddleOCR 3, because PaddlePaddle does not share one
# with torch well. Needs about 1.5 GB, and the internet. Running it again only does what is missing.
#   bash train_scripts/setup_paddleocr.sh                                        on the CPU, without models
#   bash train_scripts/setup_paddleocr.sh --models ~/paddle_models               downloads a detector and a recogniser
#   bash train_scripts/setup_paddleocr.sh --gpu cu126 --models ~/paddle_models   PaddlePaddle for CUDA 12.6
# Variables:
#   PYTHON   interpreter that creates the environment (default python3, 3.10 or newer)
#   VENV     where it goes (default .venv-paddleocr in the repository)
#   DET, REC names of the models (default PP-OCRv5_server_det and PP-OCRv5_server_rec)
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python3}
VENV=${VENV:-$ROOT/.venv-paddleocr}
DET=${DET:-PP-OCRv5_server_det}
REC=${REC:-PP-OCRv5_server_rec}
# The newest that were run with reward_server/scorers/ocr/paddle.py.
PADDLEOCR='paddleocr>=3.7,<3.8'
PADDLE_VERSION='>=3.3,<3.4'

usage() { sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
fail() { echo "setup_paddleocr.sh: $*" >&2; exit 2; }

gpu='' models=''
while (( $# )); do
  case $1 in
    --gpu) [[ ${2:-} =~ ^cu[0-9]+$ ]] || fail "--gpu needs a CUDA version, such as cu126"; gpu=$2; shift 2 ;;
    --models) [[ -n ${2:-} ]] || fail "--models needs a folder"; models=$2; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) fail "unknown option $1; known: --gpu, --models, --help" ;;
  esac
done

if [[ ! -x $VENV/bin/python ]]; then
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed, $PYTHON is $("$PYTHON" -V 2>&1); set PYTHON=/path/to/python3"
  echo "Creating $VENV"
  "$PYTHON" -m venv "$VENV"
fi

stamp=$VENV/.installed-${gpu:-cpu}
if [[ ! $stamp -nt ${BASH_SOURCE[0]} ]]; then
  echo "Installing PaddleOCR for ${gpu:-the CPU} (a few minutes)"
  pip=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
  # The two builds are packages of their own, which overwrite each other's files.
  rm -f "$VENV"/.installed-*
  "$VENV/bin/python" -m pip uninstall --quiet --disable-pip-version-check -y paddlepaddle paddlepaddle-gpu 2>/dev/null
  if [[ -n $gpu ]]; then
    "${pip[@]}" --index-url "https://www.paddlepaddle.org.cn/packages/stable/$gpu/" \
      --extra-index-url https://pypi.org/simple "paddlepaddle-gpu$PADDLE_VERSION"
  else
    "${pip[@]}" "paddlepaddle$PADDLE_VERSION"
  fi
  "${pip[@]}" "$PADDLEOCR" pyyaml numpy pillow
  touch "$stamp"
fi

export PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK=True
echo "Checking that it imports"
"$VENV/bin/python" -W ignore -c 'import paddle, paddleocr
print("paddle", paddle.__version__, "with CUDA" if paddle.is_compiled_with_cuda() else "for the CPU")'

if [[ -n $models ]]; then
  mkdir -p "$models"
  models=$(cd "$models" && pwd)
  for model in "TextDetection:$DET" "TextRecognition:$REC"; do
    name=${model#*:} folder=$models/official_models/${model#*:}
    if [[ -f $folder/inference.yml ]]; then
      echo "$name is in $folder"
      continue
    fi
    echo "Downloading $name into $folder"
    PADDLE_PDX_CACHE_HOME=$models "$VENV/bin/python" -W ignore - "${model%%:*}" "$name" <<'PYTHON' ||
import sys

import paddleocr

# Making the model is what downloads it. Without oneDNN, with which PaddlePaddle 3.3 does not run on a CPU.
getattr(paddleocr, sys.argv[1])(model_name=sys.argv[2], enable_mkldnn=False)
PYTHON
      fail "could not download $name, see above; without the internet, copy the model's folder to $folder"
    [[ -f $folder/inference.yml ]] || fail "$name was not stored in $folder; is it the name of a model of PaddleOCR 3?"
  done
fi

folder=${models:-/path/to/models}/official_models
cat <<END

Done. For the reward server's settings:

scorers:
  ocr:
    python: $VENV/bin/python
    options:
      engine: paddleocr
      detection_model: $folder/$DET
      recognition_model: $folder/$REC
END
