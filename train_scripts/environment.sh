# shellcheck shell=bash
# Sourced by the other scripts: makes .venv with this project installed, once, and again when setup.py changes.
#   PYTHON           interpreter that creates the environment (default python3, 3.10 or newer)
#   VENV             where it goes (default .venv in the repository)
#   TORCH_INDEX_URL  package index for torch alone, e.g. https://download.pytorch.org/whl/cpu

VENV=${VENV:-$ROOT/.venv}

install_project() {  # $1: extras, e.g. train,server
  local python=${PYTHON:-python3} stamp=$VENV/.installed-$1
  if [[ ! -x $VENV/bin/python ]]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
      echo "Python 3.10 or newer is needed, $python is $("$python" -V 2>&1); set PYTHON=/path/to/python3." >&2
      return 1
    }
    echo "Creating $VENV"
    "$python" -m venv "$VENV"
  fi
  if [[ $stamp -nt $ROOT/setup.py ]]; then return 0; fi
  echo "Installing into $VENV (a few minutes the first time)"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
    ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} 'torch>=2.13,<2.14'
  # The build backend warns about every editable installation; there is nothing to be done about it.
  PYTHONWARNINGS=ignore "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e "${ROOT}[$1]"
  touch "$stamp"
}
