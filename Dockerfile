# docker build .                                           for CPUs
# docker build --build-arg VARIANT=cuda .                  for NVIDIA GPUs
# docker build --build-arg EXTRAS=,torch,sklearn .         with other frameworks than ONNX Runtime, which are large
# docker run -p 8080:8080 -p 8081:8081 -v /my/models:/models:ro IMAGE

ARG VARIANT=cpu
ARG CPU_IMAGE=python:3.12-slim-bookworm
# Its CUDA major version has to be the one that onnxruntime-gpu is built for.
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

FROM ${CPU_IMAGE} AS base-cpu

FROM ${CUDA_IMAGE} AS base-cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Built on the runtime's own base, because a virtual environment refers to its interpreter by path.
# hadolint ignore=DL3006
FROM base-${VARIANT} AS build
ARG VARIANT
ARG EXTRAS=
COPY . /src
RUN python3 -m venv /opt/build \
    && /opt/build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /opt/dist /src
RUN python3 -m venv /opt/roost \
    && case "${VARIANT}" in cuda) extra=onnx-gpu,gpu ;; *) extra=onnx ;; esac \
    && /opt/roost/bin/pip install --no-cache-dir "$(echo /opt/dist/roost-*.whl)[${extra}${EXTRAS:-}]"

# hadolint ignore=DL3006
FROM base-${VARIANT} AS runtime
LABEL org.opencontainers.image.title="Roost" \
      org.opencontainers.image.description="Multi-model inference server for the Open Inference Protocol" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/roost /opt/roost
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/roost --create-home --shell /usr/sbin/nologin roost
ENV PATH=/opt/roost/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    ROOST_STATE_DIR=/var/lib/roost/state \
    ROOST_CACHE_DIR=/var/lib/roost/cache
WORKDIR /var/lib/roost
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
EXPOSE 8080 8081 8082
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('ROOST_HTTP_PORT', '8080') + '/v2/health/live', timeout=2)"]
ENTRYPOINT ["roost"]
CMD ["serve", "--host", "0.0.0.0", "--model-repository", "/models"]
