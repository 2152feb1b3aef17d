#!/usr/bin/env bash
# The main job on an embedded default: from a fresh machine to a trained model, in runs/quickstart.
# Sets up the environment, makes the miniature's world and seed model, trains with URPO, prints before and after.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment

exec bash examples/miniature/run.sh runs/quickstart "$@"
