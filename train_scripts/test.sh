#!/usr/bin/env bash
# Every test that needs neither a GPU nor the internet: about 12 minutes on 2 cores.
#   bash train_scripts/test.sh                  all of them
#   bash train_scripts/test.sh tests/samplers   some of them; arguments go to pytest
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
source train_scripts/environment.sh
install_project dev
# One thread a process: the tests' models are tiny, and threads that compete for cores are slower than none.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
workers=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
exec "$VENV/bin/python" -m pytest -n "$(( workers > 4 ? 4 : workers ))" "$@"
