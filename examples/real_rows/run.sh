#!/usr/bin/env bash
# Three steps of URPO on real rows:  bash examples/real_rows/run.sh [RUN_DIR] [KEY.SUB=VALUE]...
#   DATA   folder with gsm8k/, alpaca_eval/ and evalbiasbench/ as published (default ../shared/data)
#   CACHE  where store, tokenizer and seed model are made once (default examples/real_rows/.cache)
# A run folder that exists is gone on with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
run_dir=${1:-runs/real_rows}
data=${DATA:-../shared/data}
cache=${CACHE:-examples/real_rows/.cache}

if [ ! -f "$cache/seed/model.safetensors" ]; then
    [ -d "$data" ] || { echo "error: $data does not exist; DATA names the folder of published rows" >&2; exit 2; }
    example=$PWD/examples/real_rows
    mkdir -p "$cache"
    ln -sfn "$(realpath "$data")" "$cache/published"
    python examples/real_rows/build.py model "$data" "$cache/rows"
    (cd "$cache" && megatron-urpo pack "$example/pack.yaml")
    python examples/real_rows/build.py demonstrations "$data" "$cache/rows" "$cache/store"
    echo "Training the seed model (supervised, once)"
    megatron-urpo sft examples/real_rows/seed.yaml "output=$cache/seed" \
        "model.path=$cache/rows/model" "data.train=$cache/rows/sft.jsonl"
fi
echo "Training with URPO in $run_dir"
megatron-urpo train examples/real_rows/config.yaml "run_dir=$run_dir" \
    "model.path=$cache/seed" "data.train=[$cache/store]" "${@:2}"
