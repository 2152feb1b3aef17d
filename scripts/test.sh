#!/usr/bin/env bash
# Sets up the environment and runs the tests; arguments go to pytest, e.g. `bash scripts/test.sh tests/unit -k tau`.
# Without an SGLang environment or a SLURM the tests of them are skipped; with REQUIRE_SGLANG=1, REQUIRE_SLURM=1 that fails.
# Where there are two cores, two workers of pytest-xdist run them, in the order of tests/conftest.py; `-n 0` is one process.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname "${BASH_SOURCE[0]}")/chromium.sh"
bash "$ROOT/scripts/sglang_cpu/install.sh" & # beside the other: each keeps one core busy
sglang=$!
prepare_environment dev
ensure_chromium
if ! wait "$sglang"; then
    [ "${REQUIRE_SGLANG:-}" != 1 ] || fail "REQUIRE_SGLANG=1, and there is no SGLang environment (above: why)"
    echo "no SGLang environment (above: why); the tests of real servers will be skipped" >&2
fi

# Hundreds of runs within one process keep sockets; a login shell often allows 1024 files although it could have more.
ulimit -S -n 65536 2>/dev/null || ulimit -S -n "$(ulimit -H -n)"
workers=0 # of one thread each, since two that have two would wait for each other
[ "$(env -u OMP_NUM_THREADS nproc)" -lt 2 ] || workers=2 # nproc would take that variable for the cores
OMP_NUM_THREADS=1 exec python -m pytest -n "$workers" --no-loadscope-reorder "$@"
