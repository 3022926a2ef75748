# Demi in containers: `server` (the default target) serves bundles, `exporter` creates them.
#
#   docker build -t demi .                                       the server, on the CPU
#   docker build -t demi:gpu --build-arg DEVICE=gpu .            the server, on an NVIDIA GPU
#   docker build -t demi:exporter --target exporter .            the exporter
#   docker build -t demi:trt --build-arg DEVICE=gpu --build-arg SERVER_EXTRAS=server,otel,tensorrt .
#   docker build -t demi:trt-exporter --target exporter --build-arg DEVICE=gpu \
#     --build-arg EXPORTER_EXTRAS=export,torch,report,tensorrt .  both with TensorRT, which is gigabytes more
#
# DEVICE is the extra of pyproject.toml that brings ONNX Runtime: `cpu` or `gpu` (CUDA and cuDNN come with it, so that
# no image stores them twice). pip's own variables choose where packages come from, e.g. for PyTorch without CUDA:
# --build-arg PIP_EXTRA_INDEX_URL=... A release pins the base: --build-arg PYTHON_IMAGE=python:3.12-slim@sha256:...

ARG PYTHON_IMAGE=python:3.12-slim
ARG DEVICE=cpu
ARG SERVER_EXTRAS=server,otel
ARG EXPORTER_EXTRAS=export,torch,report


FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1


# Build Demi as a wheel, which the stages below install, so that no image contains a checkout.
FROM base AS build
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --constraint constraints.txt --wheel-dir /dist .
RUN python -m venv /opt/venv


FROM build AS server-packages
ARG DEVICE SERVER_EXTRAS PIP_INDEX_URL PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt "$(ls /dist/*.whl)[${DEVICE},${SERVER_EXTRAS}]"


FROM build AS exporter-packages
ARG DEVICE EXPORTER_EXTRAS PIP_INDEX_URL PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt "$(ls /dist/*.whl)[${DEVICE},${EXPORTER_EXTRAS}]" safetensors transformers


# Base of both images: an unprivileged account without packages, whose home need not be writable.
FROM base AS runtime
ARG VERSION=0.2.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Demi" \
      org.opencontainers.image.description="Half-precision inference you can trust" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV HOME=/tmp \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
ENTRYPOINT ["demi"]


FROM runtime AS exporter
COPY --from=exporter-packages /opt/venv /opt/venv
WORKDIR /work
CMD ["export", "--help"]


# An image built for a GPU serves on it, or reports why it cannot.
FROM runtime AS server-on-cpu
ENV DEMI_DEVICE=cpu


FROM runtime AS server-on-gpu
ENV DEMI_DEVICE=cuda


# The base is one of the two stages above, which have no version.
# hadolint ignore=DL3006
FROM server-on-${DEVICE} AS server
COPY --from=server-packages /opt/venv /opt/venv
ENV DEMI_HOST=0.0.0.0 \
    DEMI_PORT=8000
VOLUME /models
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
# Ready is more than alive: the models are loaded and the server is not shutting down. slim has no curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"DEMI_PORT\"]}/v2/health/ready', timeout=2)"]
CMD ["serve", "/models"]
