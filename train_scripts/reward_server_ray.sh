#!/usr/bin/env bash
# The reward server as a Ray Serve application: replicas over the nodes of a Ray cluster, started under load.
# On the head node:    ray start --head
# On the other nodes:  ray start --address=HEAD:6379
# Then, on any one:    AWM_REWARD_TOKEN=... bash train_scripts/reward_server_ray.sh --address auto --host 0.0.0.0 \
#                        --config reward_server/server.yaml --min-replicas 2 --max-replicas 8
# Without --address it starts a Ray of its own on this machine. Every node then answers on the same port.
#   VENV  environment (default .venv-reward), made at the first start; the other nodes need one too
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$ROOT/.venv-reward}
source "$ROOT/train_scripts/environment.sh"
install_project server,geneval,ocr,ray
if (( $# == 0 )); then set -- --config "$ROOT/reward_server/server.yaml"; fi
exec "$VENV/bin/python" -m reward_server.ray_app "$@"
