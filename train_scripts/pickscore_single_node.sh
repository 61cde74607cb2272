#!/usr/bin/env bash
# PickScore on Stable Diffusion 3.5 Medium with LoRA, as published (arXiv 2509.25050), on one node.
# Hardware: 8 GPUs as published; any number that divides the 576 images of an epoch runs the same experiment.
# Hours and final score are not measured here. It trains until you stop it; the same command goes on.
#
#   bash train_scripts/pickscore_single_node.sh [--config.section.key=value ...]     variables: launch.sh --help
set -euo pipefail
export CONFIG=${CONFIG:-config/awm.py:pickscore_sd3_no_cfg_1node}
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
