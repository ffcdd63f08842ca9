# resdeploy for NVIDIA GPUs in servers: TensorRT and ONNX Runtime from wheels that contain CUDA, so the
# base has none; the NVIDIA Container Toolkit adds the driver. In the root of the clone:
#   docker build -f deploy/docker/gpu.Dockerfile -t resdeploy:gpu .
# This image has not been built yet.
FROM debian:trixie-slim AS base
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/*

FROM base AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/resdeploy
COPY . /src
RUN /opt/pip/bin/pip --python /opt/resdeploy/bin/python install --no-cache-dir \
      -c /src/constraints.txt '/src[gpu,serve]'

FROM base
COPY --from=build /opt/resdeploy /opt/resdeploy
# The cache of built engines: mount a volume, or each container builds them again.
RUN install -d -o 10001 -g 10001 /var/cache/resdeploy
ENV PATH=/opt/resdeploy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8000
# Before it is ready, the server may have to build an engine.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30m \
  CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["resdeploy"]
CMD ["serve", "--host=0.0.0.0", "/bundles/model.bundle"]
