#!/usr/bin/env bash
# OCR on Stable Diffusion 3.5 Medium with LoRA, as published (arXiv 2509.25050), on several nodes: the same
# command on every one of them.
# Hardware: 4 nodes x 8 GPUs as published; any number that divides an epoch's 1,728 images runs the same experiment.
# Hours and final score are not measured here. It trains until you stop it; the same command goes on.
#
#   NNODES=4 NODE_RANK=0 MASTER_ADDR=HOST bash train_scripts/ocr_multi_nodes.sh     NODE_RANK is 0, 1, 2, 3
#   srun --nodes 4 --ntasks-per-node 1 bash train_scripts/ocr_multi_nodes.sh        SLURM says the rest
set -euo pipefail
export CONFIG=${CONFIG:-config/awm.py:ocr_sd3_no_cfg_4nodes}
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
