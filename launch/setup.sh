# Sourced by the scripts here: installs diffpipe into .venv with the extras named in $1, such as eval,report. An existing
# installation of them, or of dev, which has them all, is reused until pyproject.toml changes.
extras="$1"
python="${PYTHON:-python3}"
installed() { [ -e ".venv/.installed-$1" ] && [ ! pyproject.toml -nt ".venv/.installed-$1" ]; }
if ! installed "$extras" && ! installed dev; then
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "diffpipe needs Python 3.11 or newer, and $python is $("$python" --version); set PYTHON to another" >&2
    exit 1
  fi
  echo "installing diffpipe[$extras] into .venv: torch is large, this takes some minutes" >&2
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
  touch ".venv/.installed-$extras"
fi
