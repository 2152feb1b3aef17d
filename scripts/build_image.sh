#!/usr/bin/env bash
# Builds the image of the Dockerfile:
#   bash scripts/build_image.sh [--cpu | --base IMAGE] [--target STAGE] [--tag NAME] [--pip-conf FILE] [-- ARGUMENTS]
#
#   --base IMAGE     in place of the Dockerfile's NVIDIA PyTorch image
#   --cpu            on a plain Debian made here by mmdebstrap, with buildah in a store of its own, without an engine or a
#                    registry (as root; needs the packages buildah and mmdebstrap)
#   --target STAGE   server (default), trainer, or test, which runs the tests
#   --tag NAME       default: megatron-urpo:VERSION
#   --pip-conf FILE  pip's configuration during the build (index, proxy); stays out of the image
#   -- ARGUMENTS     go to the builder, e.g. --build-arg TEST_ARGUMENTS="tests/unit" or --volume FOLDER:FOLDER:ro
#
# BUILDER=docker|podman|buildah chooses among what is installed. IMAGE_STORE is where --cpu keeps base and images (default:
# image-store in the project's root, some 18 GB; remove it when done). docs/images.md says how to bring an image to a cluster.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$ROOT"

usage() { sed -n '2,/^# BUILDER/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
cpu='' base='' target=server tag='' pip_conf=''
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage && exit ;;
    --cpu) cpu=1 && shift ;;
    --) shift && break ;;
    --base | --target | --tag | --pip-conf)
        [ $# -ge 2 ] || fail "$1 needs a value; --help lists the options"
        case $1 in --base) base=$2 ;; --target) target=$2 ;; --tag) tag=$2 ;; --pip-conf) pip_conf=$2 ;; esac
        shift 2
        ;;
    *) fail "unknown option $1; --help lists the options, and what is for the builder comes after --" ;;
    esac
done
case $target in base | trainer | server | test) ;; *) fail "--target $target: the stages are base, trainer, server and test" ;; esac
[ -z "$cpu" ] || [ -z "$base" ] || fail "--cpu brings its own base; leave out --base $base"
[ -z "$pip_conf" ] || [ -f "$pip_conf" ] || fail "--pip-conf $pip_conf: there is no such file"
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' megatron_urpo/__init__.py)
tag=${tag:-megatron-urpo:$version${cpu:+-cpu}}

choose_builder() {
    local candidate
    for candidate in ${BUILDER:-docker podman buildah}; do
        if command -v "$candidate" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "no ${BUILDER:-docker, podman or buildah} here; install one, or build elsewhere and bring the image (docs/images.md)"
}

# A store of its own, so that nothing of the machine's is touched.
private_store() {
    IMAGE_STORE=$(realpath -m "${IMAGE_STORE:-$ROOT/image-store}")
    mkdir -p "$IMAGE_STORE"
    printf '[storage]\ndriver = "vfs"\nrunroot = "%s/run"\ngraphroot = "%s/graph"\n' "$IMAGE_STORE" "$IMAGE_STORE" \
        >"$IMAGE_STORE/storage.conf"
    export CONTAINERS_STORAGE_CONF="$IMAGE_STORE/storage.conf"
}

cpu_base() {
    base="localhost/urpo-base:$CPU_BASE_SUITE"
    buildah inspect --type image "$base" >/dev/null 2>&1 && return
    echo "Making $base, a Debian $CPU_BASE_SUITE with Python"
    local root
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates "$CPU_BASE_SUITE" "$IMAGE_STORE/base.tar" ||
        fail "mmdebstrap could not make the base (above: why)"
    root=$(buildah from scratch)
    buildah add --quiet "$root" "$IMAGE_STORE/base.tar" / >/dev/null
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd /bin/bash "$root"
    buildah commit --quiet --rm "$root" "$base" >/dev/null
    rm "$IMAGE_STORE/base.tar"
}

if [ -n "$cpu" ]; then
    for program in buildah mmdebstrap; do
        command -v "$program" >/dev/null 2>&1 || fail "--cpu needs $program; on Debian and Ubuntu: apt-get install buildah mmdebstrap"
    done
    [ "$(id -u)" = 0 ] || fail "--cpu runs as root only (chroot isolation)"
    builder=buildah
    private_store
    cpu_base
else
    builder=$(choose_builder)
fi

arguments=(--file Dockerfile --target "$target" --tag "$tag" --build-arg "COMMIT=$(git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)")
[ -z "$base" ] || arguments+=(--build-arg "BASE_IMAGE=$base")
[ -z "$pip_conf" ] || arguments+=(--secret "id=pip,src=$pip_conf")
if [ -n "$cpu" ]; then
    arguments+=(--isolation chroot --pull=never --network host --format docker)
fi
if [ "$builder" = buildah ]; then
    # It gives a build 1024 open files, too few for the tests, unless told; more than this shell may have it cannot give.
    files=$(ulimit -H -n)
    [[ $files =~ ^[0-9]+$ ]] && [ "$files" -le 65536 ] || files=65536
    arguments+=(--ulimit "nofile=$files:$files")
fi
started=$SECONDS
"$builder" build "${arguments[@]}" "$@" .
echo "built $tag, stage $target, in $((SECONDS - started)) s"
if [ "$builder" = buildah ]; then
    buildah images --format '{{.Name}}:{{.Tag}}  {{.Size}}'
fi
