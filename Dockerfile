# The image for clusters: the trainer, and SGLang in an environment of its own. docs/images.md says how to build and run it.
#
#   base      what the base image lacks, and a user who is not root
#   sglang    builds SGLang's environment, so that a change of code does not build it again
#   trainer   megatron-urpo, on the torch, Transformer Engine and apex that an NVIDIA base brings; a base without torch gets
#             the tested CPU build
#   server    trainer and SGLang: the image that clusters run
#   test      runs the README's test command; built on demand, part of no other stage
#
# pip's own configuration (index, proxy, certificates) comes as the build secret `pip` and is in no layer. Versions are those
# of constraints/versions.env. No heredocs: buildah before 1.43 does not know them.

ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:25.12-py3

FROM ${BASE_IMAGE} AS base
# The versions of what is missing are those of the base's own distribution, which is pinned by the base.
# hadolint ignore=DL3008
RUN if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
        apt-get update && \
        apt-get install -y --no-install-recommends python3 python3-venv && \
        rm -rf /var/lib/apt/lists/*; \
    fi
# Without this check the trainer of a CUDA image would get a torch for CPUs.
RUN if [ -d /usr/local/cuda ] && ! python3 -c 'from importlib.metadata import version; version("torch")'; then \
        echo "error: BASE_IMAGE has CUDA but no torch; take an NVIDIA PyTorch image, or a base without CUDA" >&2; \
        exit 1; \
    fi
# A number of its own: bases have used 1000 already. Under enroot and apptainer the cluster's user runs, whoever that is.
RUN useradd --no-log-init --uid 10001 --create-home --shell /bin/bash urpo && \
    install -d -o urpo /workspace
ENV LANG=C.UTF-8 \
    PIP_NO_CACHE_DIR=1 \
    KEEP_BASE_TORCH=1 \
    SGLANG_VENV=/opt/sglang
WORKDIR /opt/megatron-urpo

FROM base AS sglang
COPY constraints constraints
COPY scripts/environment.sh scripts/environment.sh
COPY scripts/sglang_cpu scripts/sglang_cpu
COPY scripts/image scripts/image
ARG PIP_CONFIG_FILE=/run/secrets/pip.conf
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    bash scripts/image/install_sglang.sh "${SGLANG_VENV}"

FROM base AS trainer
# First only what decides the environment; the rest of the code comes after it.
COPY setup.py pyproject.toml README.md ./
COPY constraints constraints
COPY scripts/environment.sh scripts/environment.sh
COPY scripts/image scripts/image
COPY megatron_urpo/__init__.py megatron_urpo/__init__.py
ARG PIP_CONFIG_FILE=/run/secrets/pip.conf
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    bash -c 'source scripts/environment.sh && prepare_environment'
COPY . .
# A user who is not root cannot write byte code beside the sources later.
RUN .venv/bin/python -m compileall -q megatron_urpo
ENV PATH=/opt/megatron-urpo/.venv/bin:${PATH}
ARG BASE_IMAGE
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="megatron-urpo" \
      org.opencontainers.image.description="Unified Reward & Policy Optimization on Megatron-Core" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      megatron-urpo.megatron-core="0.16.1"
ENV MEGATRON_URPO_COMMIT=${COMMIT}
USER 10001
WORKDIR /workspace
CMD ["megatron-urpo", "--help"]

FROM trainer AS server
COPY --from=sglang /opt/sglang /opt/sglang
LABEL megatron-urpo.sglang="0.5.21"

FROM server AS test
USER 0
WORKDIR /opt/megatron-urpo
ARG PIP_CONFIG_FILE=/run/secrets/pip.conf
RUN --mount=type=secret,id=pip,target=/run/secrets/pip.conf \
    bash -c 'source scripts/environment.sh && prepare_environment dev' && \
    find . -path ./.venv -prune -o -exec chown urpo {} +
USER 10001
# Arguments of pytest, to run a part: --build-arg TEST_ARGUMENTS="tests/unit". Split at spaces on purpose.
ARG TEST_ARGUMENTS=""
# hadolint ignore=SC2086
RUN bash scripts/test.sh ${TEST_ARGUMENTS}

# What a build without --target makes; the tests stay out of it.
FROM server AS final
