# resdeploy for CPUs: the server, and every command that needs only a bundle. In the root of the clone:
#   docker build -f deploy/docker/cpu.Dockerfile -t resdeploy:cpu .
# docs/containers.md shows how to run it. `make container` builds and tests it with podman.
FROM debian:trixie-slim AS base
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/*

FROM base AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
# Only the build has pip: the environment of the image is filled from outside.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/resdeploy
COPY . /src
RUN /opt/pip/bin/pip --python /opt/resdeploy/bin/python install --no-cache-dir \
      -c /src/constraints.txt '/src[cpu,serve]'

FROM base
COPY --from=build /opt/resdeploy /opt/resdeploy
# The cache of measured speeds: a volume keeps it. It may also be read-only.
RUN install -d -o 10001 -g 10001 /var/cache/resdeploy
ENV PATH=/opt/resdeploy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache
USER 10001:10001
EXPOSE 8000
# The path needs no token; python3 is in the image, curl is not.
HEALTHCHECK --interval=30s --timeout=5s --start-period=3m \
  CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["resdeploy"]
CMD ["serve", "--host=0.0.0.0", "/bundles/model.bundle"]
