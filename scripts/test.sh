#!/usr/bin/env bash
# Sets up the environment and runs the tests; arguments go to pytest, e.g. `bash scripts/test.sh tests/unit -k tau`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment dev

exec python -m pytest "$@"
