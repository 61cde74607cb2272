#!/usr/bin/env bash
# As launch.sh, and when a rank dies, torchrun starts all ranks of all nodes again, which continue from the newest
# checkpoint (resume_from=auto). torchrun's c10d rendezvous on node 0 brings the nodes together each time.
# Hardware: as the recipe's own script. What is lost is the work since the last checkpoint (--config.save_freq, epochs).
#
#   NNODES=4 NODE_RANK=0 MASTER_ADDR=HOST CONFIG=config/awm.py:geneval_sd3_no_cfg_4nodes \
#     bash train_scripts/torchrun_elastic.sh [--config.save_freq=5 ...]
#
#   MAX_RESTARTS   how often (default 3); the other variables are those of launch.sh
#
# What it runs on each node, without the reward server, logs and signals of launch.sh, is
#   TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun --nnodes 4 --nproc_per_node 8 --max_restarts 3 \
#     --rdzv_backend c10d --rdzv_endpoint HOST:29500 \
#     -m awm.train --config config/awm.py:geneval_sd3_no_cfg_4nodes --config.resume_from=auto
# The variable lets the ranks that are started again meet in a new store; in the old one are addresses of dead ranks.
set -euo pipefail
export CONFIG=${CONFIG:-config/awm.py:geneval_sd3_no_cfg_4nodes} MAX_RESTARTS=${MAX_RESTARTS:-3} RESUME=1
exec bash "$(dirname "${BASH_SOURCE[0]}")/launch.sh" "$@"
