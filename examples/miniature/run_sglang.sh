#!/usr/bin/env bash
# The miniature with two SGLang servers as its engine, on a CPU:  bash examples/miniature/run_sglang.sh [RUN_DIR] [KEY=VALUE]...
# Makes the servers' environment (2.2 GB) on the first call: scripts/sglang_cpu.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/environment.sh"
prepare_environment
bash scripts/sglang_cpu/install.sh
venv=$(realpath -m "${SGLANG_VENV:-.venv-sglang}")
run_dir=${1:-runs/miniature-sglang}
shift $(($# > 0))

exec bash examples/miniature/run.sh "$run_dir" \
    rollout.engine=sglang \
    rollout.sglang.num_servers=2 \
    "rollout.sglang.command=[$venv/bin/python, -m, sglang.launch_server]" \
    rollout.sglang.dtype=float32 \
    'rollout.sglang.flags={device: cpu, attention-backend: torch_native, max-total-tokens: 32768, max-running-requests: 64, sleep-on-idle: true}' \
    'rollout.sglang.environment={SGLANG_USE_CPU_ENGINE: "1", OMP_NUM_THREADS: "1", GLOO_SOCKET_IFNAME: lo, HF_HUB_OFFLINE: "1"}' \
    "$@"
