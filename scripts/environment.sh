# Sourced by the other scripts: gives the checkout its own virtual environment in .venv and puts it on the PATH.
#   prepare_environment [EXTRA]     installs the package with the versions of constraints/, once for each state of them
#
# PYTHON=python3.12 chooses the interpreter. A GPU machine gets the CUDA build of torch. Elsewhere the CPU build is taken
# where a configured package index offers it (set PIP_EXTRA_INDEX_URL to PyTorch's own CPU index), else the plain one,
# which works as well but brings gigabytes of CUDA libraries.
#
# KEEP_BASE_TORCH=1, set in the image: where the interpreter has a torch of its own (NVIDIA's images), that one is used, with
# the Transformer Engine and apex that were compiled against it, and never replaced.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/constraints/versions.env"
CONSTRAINTS="$ROOT/constraints/cpu.txt"

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
    "$ROOT/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$CONSTRAINTS" "$@"
}

torch_of() { "$1" -c 'from importlib.metadata import distribution as d; print(d("torch").version, d("torch").locate_file(""))'; }

# The environment sees the base's packages; what its torch is compiled with stays at the base's versions.
adopt_base_torch() {
    local python=$1
    "$python" -m venv --system-site-packages "$ROOT/.venv" || fail "no virtual environment could be made"
    CONSTRAINTS="$ROOT/.venv/constraints.txt"
    "$python" "$ROOT/scripts/image/keep_base.py" "$ROOT/constraints/cpu.txt" >"$CONSTRAINTS" || fail "the base's versions could not be read"
    export PIP_CONSTRAINT="$CONSTRAINTS" # in place of the base's own, which holds back packages that nothing here is compiled with
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
    local extra=${1:-} python base_torch='' stamp mark="$ROOT/.venv/.installed${1:+-$1}"
    stamp=$(cat "$ROOT/setup.py" "$ROOT/constraints/versions.env" "$ROOT/constraints/cpu.txt" "${BASH_SOURCE[0]}" | cksum)
    if [ "$(cat "$mark" 2>/dev/null)" != "$stamp" ]; then
        python=$(find_python) || exit 1
        echo "Preparing .venv with $("$python" --version); this takes a few minutes the first time"
        if [ "${KEEP_BASE_TORCH:-}" = 1 ] && base_torch=$(torch_of "$python" 2>/dev/null); then
            adopt_base_torch "$python"
        else
            base_torch=
            "$python" -m venv "$ROOT/.venv" || fail "no virtual environment could be made; on Debian and Ubuntu install python3-venv"
        fi
        [ -n "$base_torch" ] || install_torch || fail "torch $TORCH_VERSION could not be installed; is a package index reachable from here (network, proxy, PIP_INDEX_URL)?"
        pip_install --editable "$ROOT${extra:+[$extra]}" ||
            fail "the dependencies could not be installed; is a package index reachable from here (network, proxy, PIP_INDEX_URL)?"
        [ -z "$base_torch" ] || [ "$(torch_of "$ROOT/.venv/bin/python")" = "$base_torch" ] ||
            fail "the base's torch ($base_torch) was replaced by $(torch_of "$ROOT/.venv/bin/python")"
        if [ "$extra" = dev ]; then
            install_triton || fail "triton $TRITON_VERSION could not be installed; is a package index reachable from here (network, proxy, PIP_INDEX_URL)?"
        fi
        echo "$stamp" >"$mark"
    fi
    export PATH="$ROOT/.venv/bin:$PATH"
    cd "$ROOT" || exit 1
}
