#!/usr/bin/env bash
# Gives an image its SGLang in an environment of its own: bash scripts/image/install_sglang.sh VENV
#
# With CUDA in the base: every package of constraints/sglang_gpu.txt, torch's CUDA build among them. The base's torch is not
# used, since SGLang declares one exact version of it. Without CUDA: what the tests of real servers use (scripts/sglang_cpu).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
venv=${1:?usage: bash scripts/image/install_sglang.sh VENV}

if [ ! -d /usr/local/cuda ]; then
    exec bash "$ROOT/scripts/sglang_cpu/install.sh" "$venv"
fi
python=$(find_python)
"$python" -m venv "$venv" || fail "no virtual environment could be made in $venv"
# The base may hold pip to its own versions, which are not SGLang's.
PIP_CONSTRAINT='' "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    --requirement "$ROOT/constraints/sglang_gpu.txt" ||
    fail "the packages of constraints/sglang_gpu.txt could not be installed; is a package index reachable from the build?"
# Importing SGLang wants a driver, which a build does not have: megatron-urpo finds out at the first start of a server.
installed=$("$venv/bin/python" -c 'from importlib.metadata import version; print(version("sglang"))')
[ "$installed" = "$SGLANG_VERSION" ] || fail "SGLang $installed was installed instead of $SGLANG_VERSION"
