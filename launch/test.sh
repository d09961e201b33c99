#!/usr/bin/env bash
# All checks, the fastest first: ruff, import-linter, pyright, pytest. Sets up .venv first if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh dev
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
.venv/bin/pyright
OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses "${PYTEST_WORKERS:-2}" --dist worksteal "$@"
