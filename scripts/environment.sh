# Sourced by the other scripts: gives the checkout its own virtual environment in .venv and puts it on the PATH.
#   prepare_environment [EXTRA]     installs the package with the versions of constraints/, once for each state of them
#
# PYTHON=python3.12 chooses the interpreter. A GPU machine gets the CUDA build of torch. Elsewhere the CPU build is taken
# where a configured package index offers it (set PIP_EXTRA_INDEX_URL to PyTorch's own CPU index), else the plain one,
# which works as well but brings gigabytes of CUDA libraries.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TORCH_VERSION=2.13.0
# Only for tests of kernels without a GPU. Not among the constraints: a CUDA build of torch brings the version it needs.
TRITON_VERSION=3.8.0

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.11 python3.12 python3.13; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, found $(python3 --version 2>&1 || echo none); install it, or name it with PYTHON=/path/to/python3.11"
}

pip_install() {
    "$ROOT/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$ROOT/constraints/cpu.txt" "$@"
}

install_torch() {
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
        pip_install "torch==$TORCH_VERSION"
    else
        pip_install "torch==$TORCH_VERSION+cpu" 2>/dev/null || pip_install "torch==$TORCH_VERSION"
    fi
}

install_triton() {
    "$ROOT/.venv/bin/python" -c 'import triton' 2>/dev/null || pip_install --no-deps "triton==$TRITON_VERSION"
}

prepare_environment() {
    local extra=${1:-} python stamp mark="$ROOT/.venv/.installed${1:+-$1}"
    stamp=$(cat "$ROOT/setup.py" "$ROOT/constraints/cpu.txt" "${BASH_SOURCE[0]}" | cksum)
    if [ "$(cat "$mark" 2>/dev/null)" != "$stamp" ]; then
        python=$(find_python) || exit 1
        echo "Preparing .venv with $("$python" --version); this takes a few minutes the first time"
        "$python" -m venv "$ROOT/.venv" || fail "no virtual environment could be made; on Debian and Ubuntu install python3-venv"
        install_torch || fail "torch $TORCH_VERSION could not be installed; is a package index reachable from here (network, proxy, PIP_INDEX_URL)?"
        pip_install --editable "$ROOT${extra:+[$extra]}" ||
            fail "the dependencies could not be installed; is a package index reachable from here (network, proxy, PIP_INDEX_URL)?"
        if [ "$extra" = dev ]; then
            install_triton || fail "triton $TRITON_VERSION could not be installed; is a package index reachable from here (network, proxy, PIP_INDEX_URL)?"
        fi
        echo "$stamp" >"$mark"
    fi
    export PATH="$ROOT/.venv/bin:$PATH"
    cd "$ROOT" || exit 1
}
