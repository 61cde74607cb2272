#!/usr/bin/env bash
# GenEval, OCR and PickScore on one machine, from one YAML file, in an environment of the server's own.
# Hardware: one GPU with 8 GB for GenEval and PickScore; OCR runs on CPU cores. Models are downloaded at the first
# start. Ready when it logs "ready: ..." and http://127.0.0.1:18080/readyz answers 200.
#
#   bash train_scripts/reward_server.sh                                    reward_server/server.yaml
#   bash train_scripts/reward_server.sh --config my.yaml --port 18090      any option or command of awm-reward-server
#
#   VENV  environment (default .venv-reward), made at the first start
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$ROOT/.venv-reward}
source "$ROOT/train_scripts/environment.sh"
install_project server,geneval,ocr

# Paths in the arguments are the caller's, so the folder is not changed.
shipped=1
case ${1:-} in check | convert-*) shipped=0 ;; esac
for argument in "$@"; do
  case $argument in --config | --config=* | --scorer | --scorer=* | -h | --help) shipped=0 ;; esac
done
if (( shipped )); then set -- --config "$ROOT/reward_server/server.yaml" "$@"; fi
exec "$VENV/bin/awm-reward-server" "$@"
