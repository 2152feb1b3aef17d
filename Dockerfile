# The trainer, and beside it servers in an environment of their own. No forks and no patched packages.
#
#   docker build --target server --build-arg COMMIT=$(git rev-parse HEAD) -t megatron-urpo .
#   docker build --target test --build-arg BASE_IMAGE=debian-with-python3 .   # a base without CUDA builds the same file
#
# The default base brings CUDA, torch, Transformer Engine and apex; where a base has no torch, the tested one is installed.
# Its build on that base has not been tried.
ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:25.10-py3

FROM ${BASE_IMAGE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# NVIDIA's images hold pip to their own versions of everything; these packages have the project's.
ENV PIP_CONSTRAINT= PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 10001 urpo && mkdir -p /opt/megatron_urpo && chown urpo:urpo /opt/megatron_urpo
WORKDIR /opt/megatron_urpo

FROM base AS trainer
ARG TORCH_VERSION=2.13.0
COPY --chown=urpo:urpo setup.py pyproject.toml README.md LICENSE ./
COPY --chown=urpo:urpo constraints constraints
COPY --chown=urpo:urpo megatron_urpo megatron_urpo
USER 10001
# The base's torch is seen through --system-site-packages and stays: its pin alone is left out of the constraints.
RUN python3 -m venv --system-site-packages .venv \
    && if ! .venv/bin/python -c 'import torch'; then .venv/bin/python -m pip install "torch==${TORCH_VERSION}"; fi \
    && grep -v '^torch==' constraints/cpu.txt > /tmp/constraints.txt \
    && .venv/bin/python -m pip install --constraint /tmp/constraints.txt --editable . \
    && rm /tmp/constraints.txt
ENV PATH=/opt/megatron_urpo/.venv/bin:${PATH}
COPY --chown=urpo:urpo scripts scripts
COPY --chown=urpo:urpo examples examples
ARG COMMIT=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="megatron-urpo" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.version="${VERSION}" \
      megatron-urpo.torch="${TORCH_VERSION}"

FROM trainer AS test
COPY --chown=urpo:urpo . .
RUN bash scripts/test.sh

FROM trainer AS server
ARG SGLANG_VERSION=0.5.21
LABEL megatron-urpo.sglang="${SGLANG_VERSION}"
# SGLang pins its own torch, so it shares nothing with the trainer: rollout.sglang.command names this python.
RUN python3 -m venv .venv-sglang \
    && .venv-sglang/bin/python -m pip install "sglang==${SGLANG_VERSION}"
CMD ["megatron-urpo", "--help"]
