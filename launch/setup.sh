# Sourced by demo.sh and test.sh: a virtual environment in .venv with diffpipe and one of its extras (run, test or dev).
# Made once; made again when pyproject.toml has changed since.
extra="$1"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "diffpipe needs Python 3.11 or newer; $python is $("$python" --version). Set PYTHON to another." >&2
  exit 1
}
stamp=".venv/.diffpipe-$extra"
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  echo "installing diffpipe[$extra] into .venv (torch is large: this can take some minutes)" >&2
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --editable ".[$extra]"
  touch "$stamp"
fi
