#!/usr/bin/env bash
# Format, lint, types and the architecture of imports. Run it before every commit; the tests run it too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment dev

ruff format --check .
ruff check .
mypy
python -m pytest -q tests/test_architecture.py
