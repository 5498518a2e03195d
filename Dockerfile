# slimvit with everything in requirements.lock, for the nodes of a cluster.
#
#   docker build --tag slimvit:0.1.0 .
#
# The wheels of PyTorch bring CUDA along, so the image has no CUDA base; the node's driver is enough. On GPU nodes the
# container needs NVIDIA's container runtime, which the default AMI and GPU operators have.

# One base for both stages: an interpreter of another version could not run what the first stage installs.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/slimvit
ENV PATH=/opt/slimvit/bin:$PATH
# The dependencies are a layer of their own: it is built again only when the lock file changes.
COPY requirements.lock /build/requirements.lock
RUN pip install --requirement /build/requirements.lock
COPY pyproject.toml README.md /build/
COPY specs /build/specs
COPY strategies /build/strategies
COPY cluster /build/cluster
COPY orchestrator /build/orchestrator
RUN pip install --no-deps --no-build-isolation /build \
    && slimvit --help > /dev/null

FROM ${PYTHON} AS run
LABEL org.opencontainers.image.title="slimvit" \
      org.opencontainers.image.description="Plans, trains and measures efficient Vision Transformers on a Ray cluster." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# bash and procps: Ray's launcher and KubeRay run `bash -lc` and `ps` in the container. rsync: the launcher's file
# mounts. wget: KubeRay's liveness and readiness probes. g++: torch.compile.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash g++ libgomp1 procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 slimvit \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash slimvit \
    # A login shell sets PATH anew, and KubeRay starts Ray in one.
    && echo 'export PATH=/opt/slimvit/bin:$PATH' > /etc/profile.d/slimvit.sh
COPY --from=build /opt/slimvit /opt/slimvit
ENV PATH=/opt/slimvit/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/slimvit
# No health check here: a container may be a head, a worker or a single command. KubeRay brings its own probes.
CMD ["slimvit", "--help"]
