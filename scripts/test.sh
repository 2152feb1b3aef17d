#!/usr/bin/env bash
# Sets up the environment and runs the tests; arguments go to pytest, e.g. `bash scripts/test.sh tests/unit -k tau`.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/chromium.sh"
prepare_environment dev
ensure_chromium

exec python -m pytest "$@"
