#!/usr/bin/env bash
# GenEval, OCR and PickScore on one machine, from one YAML file, in an environment of the server's own.
# Hardware: one GPU with 8 GB for GenEval and PickScore; OCR runs on CPU cores. Models are downloaded at the first
# start. Ready when it logs "ready: ..." and http://127.0.0.1:18080/readyz answers 200.
#
#   bash train_scripts/reward_server.sh                                    reward_server/server.yaml
#   bash train_scripts/reward_server.sh --config my.yaml --port 18090      any option of awm-reward-server
#
#   VENV  environment (default .venv-reward), made at the first start
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
VENV=${VENV:-$ROOT/.venv-reward}
source train_scripts/environment.sh
install_project server,geneval,ocr
case " $* " in
  *" --config "* | *" --scorer "* | *" --help "* | *" -h "* | *" check "* | *" convert-"*) ;;
  *) set -- --config reward_server/server.yaml "$@" ;;
esac
exec "$VENV/bin/awm-reward-server" "$@"
