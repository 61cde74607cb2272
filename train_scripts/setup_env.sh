#!/usr/bin/env bash
# Makes the environments for training Stable Diffusion 3.5: .venv for the trainer, .venv-reward for the reward server.
# Needs Python 3.10 or newer, and the internet. Run it again and it does only what is missing or outdated. If the
# nodes share the repository, run it on one of them only.
#
#   bash train_scripts/setup_env.sh [--no-reward] [--mmdet] [--paddleocr] [--deepspeed]
#
#   --no-reward   only the trainer's; the rewards come from servers elsewhere (REWARD_URLS)
#   --mmdet       also .venv-mmdet: the detector of the published GenEval numbers, compiled here (15 to 20 minutes)
#   --paddleocr   also .venv-paddleocr: PaddleOCR 3 for the OCR reward
#   --deepspeed   also DeepSpeed in the trainer's, for ENGINE=deepspeed_zero1 and deepspeed_zero2
#
#   PYTHON, TORCH_INDEX_URL   interpreter, and package index for torch alone, for all of them
#   VENV, REWARD_VENV         where the two go
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TRAINER_VENV=${VENV:-$ROOT/.venv}
REWARD_VENV=${REWARD_VENV:-$ROOT/.venv-reward}

reward=1 mmdet=0 paddleocr=0 deepspeed=0
while (( $# )); do
  case $1 in
    --no-reward) reward=0 ;;
    --mmdet) mmdet=1 ;;
    --paddleocr) paddleocr=1 ;;
    --deepspeed) deepspeed=1 ;;
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *)
      echo "setup_env.sh: unknown option $1; known: --no-reward, --mmdet, --paddleocr, --deepspeed, --help" >&2
      exit 2 ;;
  esac
  shift
done

step() { printf '\n== %s\n' "$*"; }

environment() {  # $1: folder, $2: extras of setup.py
  VENV=$1
  source "$ROOT/train_scripts/environment.sh"
  if [[ $VENV/.installed-$2 -nt $ROOT/setup.py ]]; then
    echo "skipped: $VENV already has this project with [$2]"
  else
    install_project "$2"
  fi
}

step "The trainer's environment"
environment "$TRAINER_VENV" train
if (( deepspeed )); then
  if "$TRAINER_VENV/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("deepspeed") is None)'; then
    echo "skipped: it already has DeepSpeed"
  else
    "$TRAINER_VENV/bin/python" -m pip install --quiet --disable-pip-version-check deepspeed
  fi
fi
if (( reward )); then
  step "The reward server's environment"
  environment "$REWARD_VENV" server,geneval,ocr
fi
if (( mmdet )); then
  step "mmdet, for the reward server"
  bash "$ROOT/train_scripts/setup_mmdet.sh"
fi
if (( paddleocr )); then
  step "PaddleOCR, for the reward server"
  env -u VENV bash "$ROOT/train_scripts/setup_paddleocr.sh"
fi

step "Check"
"$TRAINER_VENV/bin/python" -W ignore -c 'import torch, awm
print(f"trainer: torch {torch.__version__}, {torch.cuda.device_count()} GPUs")'
if (( reward )); then
  "$REWARD_VENV/bin/python" -W ignore -c 'import torch, reward_server, rapidocr, scipy, uvicorn
print(f"reward server: torch {torch.__version__}")'
fi
step "Done. Next: hf auth login (or set HUGGINGFACE_TOKEN), then bash train_scripts/geneval_single_node.sh"
