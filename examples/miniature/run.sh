#!/usr/bin/env bash
# The miniature from nothing to a trained model:  bash examples/miniature/run.sh [RUN_DIR] [KEY.SUB=VALUE]...
# World and seed model are made once for each state of the files that make them, and kept in examples/miniature/.cache.
# A run folder that exists is gone on with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
run_dir=${1:-runs/miniature}
cache=examples/miniature/.cache

made_from=$(cat examples/miniature/{build,world,teachers}.py examples/miniature/seed.yaml | cksum)
if [ "$(cat "$cache/made_from" 2>/dev/null)" != "$made_from" ]; then
    rm -rf "$cache"
    python examples/miniature/build.py "$cache/world"
    echo "Training the seed model (supervised, once)"
    megatron-urpo sft examples/miniature/seed.yaml
    echo "$made_from" >"$cache/made_from"
fi
echo "Training with URPO in $run_dir"
megatron-urpo train examples/miniature/config.yaml "run_dir=$run_dir" "${@:2}"
