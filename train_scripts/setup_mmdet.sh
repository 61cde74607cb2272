#!/usr/bin/env bash
# Builds a virtual environment with mmdet 3.3 for the "mmdet" detector of the GenEval reward. It is optional: the
# detector "hf" finds the same objects with the converted weights and needs none of this.
# Takes 15 to 20 minutes on 2 cores, nearly all of it compiling mmcv. Run it again and it goes on where it stopped.
#
#   bash train_scripts/setup_mmdet.sh [ENVIRONMENT]       (default: .venv-mmdet in the repository)
#
#   PYTHON           interpreter that creates the environment (default python3, 3.10 or newer)
#   TORCH            torch to install (default torch==2.13.0); its CUDA version must be that of nvcc
#   TORCH_INDEX_URL  package index for torch alone, e.g. https://download.pytorch.org/whl/cpu
#   MAX_JOBS         compilers at a time (default: one per core; each needs about 2 GB of memory)
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h|--help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  -*) echo "setup_mmdet.sh: unknown option $1; see --help" >&2; exit 2 ;;
esac
if (( $# > 1 )); then echo "setup_mmdet.sh: one argument at most, the environment; see --help" >&2; exit 2; fi
ENVIRONMENT=${1:-$ROOT/.venv-mmdet}
CHECKPOINT=mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth
CHECKPOINT_URL=https://download.openmmlab.com/mmdetection/v3.0/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco/$CHECKPOINT

step() { printf '\n== %s\n' "$*"; }
install() { "$ENVIRONMENT/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
# From / and not from here, so that nothing is imported from the current directory.
runs() { (cd / && "$ENVIRONMENT/bin/python" -c "$1" >/dev/null 2>&1); }

step "Environment $ENVIRONMENT"
if [[ ! -x $ENVIRONMENT/bin/python ]]; then
  "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; set PYTHON=/path/to/python3." >&2
    exit 1
  }
  "${PYTHON:-python3}" -m venv "$ENVIRONMENT"
fi
ENVIRONMENT=$(cd "$ENVIRONMENT" && pwd)

step "Build tools; setuptools below 81, because mmcv's setup.py imports pkg_resources, which 81 removed"
install 'setuptools<81' wheel ninja psutil

step "PyTorch: ${TORCH:-torch==2.13.0}"
if runs 'import torch'; then
  echo "already there"
else
  install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "${TORCH:-torch==2.13.0}"
fi

step "mmcv 2.2.0 with its operators"
if runs 'from mmcv.ops import MultiScaleDeformableAttention, nms'; then
  echo "already there"
else
  if arch=$(cd / && "$ENVIRONMENT/bin/python" -c 'import torch; print("{}{}".format(*torch.cuda.get_device_capability()))' 2>/dev/null); then
    command -v "${CUDA_HOME:+$CUDA_HOME/bin/}nvcc" >/dev/null || {
      echo "There is a GPU but no nvcc, so that mmcv's operators would run on the CPU only. Install the CUDA toolkit" >&2
      echo "torch was built with and set CUDA_HOME, or hide the GPU with CUDA_VISIBLE_DEVICES= to build for the CPU." >&2
      exit 1
    }
    echo "compiling for the GPU, sm_$arch"
    export FORCE_CUDA=1 MMCV_CUDA_ARGS="${MMCV_CUDA_ARGS:--arch=sm_$arch}"
  else
    echo "compiling for the CPU; there is no GPU that torch can use"
  fi
  # A wheel without operators, from PyPI's mmcv-lite or an earlier attempt, would count as installed.
  "$ENVIRONMENT/bin/python" -m pip uninstall --yes --quiet mmcv mmcv-lite 2>/dev/null || true
  # Without isolation: an isolated build would get a setuptools without pkg_resources, and no torch to compile against.
  MMCV_WITH_OPS=1 install --no-build-isolation --no-binary mmcv 'mmcv==2.2.0'
fi

step "mmdet 3.3.0, told to accept mmcv 2.2.0"
install 'mmengine>=0.10.7' 'mmdet==3.3.0'
# The last mmdet refuses the last mmcv by its number alone.
version_check=$(cd / && "$ENVIRONMENT/bin/python" -c \
  'import importlib.util as u; print(u.find_spec("mmdet").submodule_search_locations[0] + "/__init__.py")')
sed -i "s/^mmcv_maximum_version = '2\.2\.0'/mmcv_maximum_version = '2.3.0'/" "$version_check"
grep -n '^mmcv_maximum_version' "$version_check"

step "What the colour classifier needs"
install 'transformers>=5.0,<6' 'scipy>=1.11' 'pillow>=10.3' 'numpy>=1.26'

step "Check"
cd /
"$ENVIRONMENT/bin/python" - <<'PYTHON'
import pathlib
import torch
import mmdet
from mmcv.ops import nms
from mmengine.config import Config
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

register_all_modules()
device = "cuda" if torch.cuda.is_available() else "cpu"
boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 5.0]], device=device)
kept = nms(boxes, torch.tensor([0.9, 0.8], device=device), 0.5)[1].tolist()
assert kept == [0], kept
name = "mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"
config = Config.fromfile(pathlib.Path(mmdet.__path__[0], ".mim", "configs", name))
config.model.backbone.init_cfg = None  # it would download a Swin of ImageNet
model = MODELS.build(config.model)
print(f"mmdet {mmdet.__version__} with operators on {device}; "
      f"Mask2Former has {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
PYTHON

step "Done. What is left is the checkpoint and one entry in the reward server's settings:"
cat <<TEXT
  curl -fLO $CHECKPOINT_URL

  scorers:
    geneval:
      scorer: geneval
      python: $ENVIRONMENT/bin/python
      options: {detector: mmdet, checkpoint: /path/to/$CHECKPOINT}
TEXT
