#!/usr/bin/env bash
# Three steps of URPO on real rows:  bash examples/real_rows/run.sh [RUN_DIR] [KEY.SUB=VALUE]...
#   DATA   folder with gsm8k/ and alpaca_eval/ as published (default ../shared/data)
#   CACHE  where rows, tokenizer and seed model are made once (default examples/real_rows/.cache)
# A run folder that exists is gone on with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
run_dir=${1:-runs/real_rows}
data=${DATA:-../shared/data}
cache=${CACHE:-examples/real_rows/.cache}

if [ ! -f "$cache/seed/model.safetensors" ]; then
    python examples/real_rows/build.py "$data" "$cache/rows"
    echo "Training the seed model (supervised, once)"
    megatron-urpo sft examples/real_rows/seed.yaml "output=$cache/seed" \
        "model.path=$cache/rows/model" "data.train=$cache/rows/sft.jsonl"
fi
echo "Training with URPO in $run_dir"
megatron-urpo train examples/real_rows/config.yaml "run_dir=$run_dir" \
    "model.path=$cache/seed" "data.train=[$cache/rows/train.jsonl]" "${@:2}"
