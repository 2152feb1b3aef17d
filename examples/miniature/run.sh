#!/usr/bin/env bash
# The miniature from nothing to a trained model:  bash examples/miniature/run.sh [RUN_DIR] [KEY.SUB=VALUE]...
# World and seed model are made once and kept in examples/miniature/.cache. A run folder that exists is gone on with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
run_dir=${1:-runs/miniature}
cache=examples/miniature/.cache

if [ ! -f "$cache/seed/model.safetensors" ]; then
    python examples/miniature/build.py "$cache/world"
    echo "Training the seed model (supervised, once)"
    megatron-urpo sft examples/miniature/seed.yaml
fi
echo "Training with URPO in $run_dir"
megatron-urpo train examples/miniature/config.yaml "run_dir=$run_dir" "${@:2}"
