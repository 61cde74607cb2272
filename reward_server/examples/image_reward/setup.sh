#!/usr/bin/env bash
# Makes the environment of the ImageReward worker: a virtual environment with pinned versions of its own.
# Python 3.10 to 3.12; about 6 GB, most of it CUDA libraries.
#
#   bash setup.sh ~/envs/image-reward            # then `python: ~/envs/image-reward/bin/python` in server.yaml
#   PYTHON=python3.11 bash setup.sh DIRECTORY    # with a certain interpreter
#   bash setup.sh DIRECTORY --extra-index-url https://download.pytorch.org/whl/cu124   # the rest goes to pip
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ $# -lt 1 ]]; then
    echo "usage: bash setup.sh DIRECTORY [options of pip install]" >&2
    exit 2
fi
directory=$1
shift

"${PYTHON:-python3}" -m venv "$directory"
# One command for all: pip then sees every pin at once, and fails rather than replace one by another.
"$directory/bin/python" -m pip install --requirement "$here/requirements.txt" "$@"
"$directory/bin/python" -c "import ImageReward; print('ImageReward offers', *ImageReward.available_models())"
echo "Put this into server.yaml:   python: $(cd "$directory" && pwd)/bin/python"
