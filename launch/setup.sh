# Sourced by the scripts here: installs diffpipe into .venv, with the extra named in $1 if any. An existing installation
# is reused until pyproject.toml changes.
extra="${1:-}"
python="${PYTHON:-python3}"
stamp=".venv/.installed${extra:+-$extra}"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "diffpipe needs Python 3.11 or newer, and $python is $("$python" --version); set PYTHON to another" >&2
    exit 1
  fi
  echo "installing diffpipe${extra:+[$extra]} into .venv: torch is large, this takes some minutes" >&2
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
  touch .venv/.installed "$stamp"
fi
