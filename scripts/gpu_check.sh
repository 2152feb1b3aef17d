#!/usr/bin/env bash
# What only a GPU can show, measured on the one that is here:  bash scripts/gpu_check.sh [--output FOLDER] [--parts A,B]
#   loop      the training loop of the miniature in bfloat16; with Transformer Engine's layers too, and in FP8
#   parity    log-probabilities of a bfloat16 policy against float32
#   update    tokens a second and model FLOPs utilisation of the update, Qwen2.5 0.5B and 1.5B shapes
#   logprobs  log-probability kernels: error, time and peak memory
#   broadcast weights over NCCL from one process to another, where there are two GPUs
# Tables and numbers go to FOLDER (docs/measurements/gpu). The Python of the environment that is active is used, or
# PYTHON=/path/to/python; what it lacks is said. `--device cpu --tiny` goes through everything without a GPU, in small.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ " $* " != *" --device cpu "* ]] && ! { command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; }; then
    echo "No NVIDIA GPU here: nothing was measured. (--device cpu --tiny tries the scripts out.)"
    exit 0
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" scripts/gpu/check.py "$@"
