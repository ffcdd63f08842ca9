# resdeploy for a Jetson with JetPack 7, which runs containers for Arm servers (SBSA): TensorRT 10.13, CUDA 13.0 and
# Python 3.12 are those of the base image. On the board, in the root of the clone:
#   docker build -f deploy/docker/jetpack7.Dockerfile -t resdeploy:jetpack7 .
# This image has not been built yet.
FROM nvcr.io/nvidia/tensorrt:25.10-py3 AS base
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*

FROM base AS build
COPY . /src
# The option makes TensorRT of the base visible; the wheels do not replace its other packages.
RUN python3 -m venv --system-site-packages /opt/resdeploy \
 && /opt/resdeploy/bin/pip install --no-cache-dir --ignore-installed \
      -c /src/constraints.txt '/src[jetson,cpu,serve]'

FROM base
COPY --from=build /opt/resdeploy /opt/resdeploy
# TensorRT loads only on a board, but its module must be there.
RUN /opt/resdeploy/bin/python -c "from importlib.util import find_spec; assert find_spec('tensorrt')"
# The cache of built engines: mount a volume, or each container builds them again.
RUN install -d -o 10001 -g 44 /var/cache/resdeploy
ENV PATH=/opt/resdeploy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=all
# The group 44 is `video`, which owns the devices of the GPU on a Jetson.
USER 10001:44
EXPOSE 8000
# Before it is ready, the server may have to build an engine.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30m \
  CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["resdeploy"]
CMD ["serve", "--host=0.0.0.0", "/bundles/model.bundle"]
