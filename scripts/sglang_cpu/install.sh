#!/usr/bin/env bash
# Makes an environment that serves models with SGLang on a machine without a GPU:
#   bash scripts/sglang_cpu/install.sh [VENV]            default: $SGLANG_VENV, else .venv-sglang in the project's root
#   bash scripts/sglang_cpu/install.sh --check [VENV]    says whether it is there and up to date, and changes nothing
#
# Takes the interpreter and torch as scripts/environment.sh does (PYTHON=..., PIP_EXTRA_INDEX_URL=...), all the rest from
# requirements.txt, and puts the stand-ins of shims/ among the installed packages. A second call for the same versions
# and stand-ins does nothing; a call that was interrupted is begun anew. README.md says how a server is started.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../environment.sh"

check=
if [ "${1:-}" = --check ]; then
    check=1
    shift
fi
venv=$(realpath -m "${1:-${SGLANG_VENV:-$ROOT/.venv-sglang}}")
mark="$venv/.sglang_cpu" # holds the stamp of a finished installation, otherwise nothing
# Byte code does not count: a stand-in that was imported where it lies leaves some there.
stamp=$(cd "$here" && find requirements.txt shims -type f -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 cat | cksum)
stamp="$TORCH_VERSION $stamp"
is_ready() { [ "$(cat "$mark" 2>/dev/null)" = "$stamp" ]; }

install() { "$venv/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$@"; }
install_torch() {
    install --constraint "$here/requirements.txt" "torch==$TORCH_VERSION+cpu" 2>/dev/null ||
        install --constraint "$here/requirements.txt" "torch==$TORCH_VERSION"
}

if is_ready; then exit 0; fi
[ -z "$check" ] || fail "no SGLang of this version in $venv; make it with: bash scripts/sglang_cpu/install.sh $venv"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "SGLang's CPU engine is set up for Linux on x86-64 only, this is $(uname -sm)"
if [ -e "$venv" ] && [ ! -e "$mark" ]; then
    fail "$venv exists and was not made by this script; remove it or name another folder"
fi
python=$(find_python) || exit 1
mkdir -p "$venv" || fail "$venv cannot be made; name a folder that can"
exec 9>>"$mark"
flock 9 # two callers at once: the second waits, and finds the work done
if is_ready; then exit 0; fi

echo "Preparing SGLang for CPU in $venv with $("$python" --version); this takes about two minutes and 2.5 GB of disk"
: >"$mark"
find "$venv" -mindepth 1 -maxdepth 1 -not -path "$mark" -exec rm -rf {} +
"$python" -m venv "$venv" || fail "no virtual environment could be made; on Debian and Ubuntu install python3-venv"
unreachable="is a package index reachable from here (network, proxy, PIP_INDEX_URL)?"
echo "  torch $TORCH_VERSION"
install_torch || fail "torch $TORCH_VERSION could not be installed; $unreachable"
echo "  $(grep -c == "$here/requirements.txt") packages of requirements.txt"
install --no-deps --requirement "$here/requirements.txt" ||
    fail "the packages of scripts/sglang_cpu/requirements.txt could not be installed; $unreachable"
echo "  stand-ins, and a first import"
cp -R "$here/shims/." "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
SGLANG_USE_CPU_ENGINE=1 "$venv/bin/python" -I -W ignore -c 'import sglang.launch_server, sglang.srt.entrypoints.http_server' ||
    fail "SGLang was installed but cannot be imported (above: why); scripts/sglang_cpu/README.md lists what stands in for what"
echo "$stamp" >"$mark"
