# The one image of agent and server: docker build -t kubenetmon:0.1.0 .
#
# amd64 and arm64 (docker buildx build --platform linux/amd64,linux/arm64 .): every compiled package of the
# lock files has wheels for both, and what is compiled here is compiled for the platform that builds.
# Adds about 190 MB to debian:bookworm-slim (75 MB), unpacked: Python, and numpy and the rest of the lock file. No
# compiler, no pip, nothing that needs to be written. tests/image builds it in CI without a container engine.
ARG DEBIAN=docker.io/library/debian:bookworm-slim

FROM ${DEBIAN} AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        gcc libc6-dev libmnl-dev libnetfilter-conntrack-dev pkg-config python3-dev python3-venv
WORKDIR /src
COPY deploy/locks/runtime.lock deploy/locks/build.lock deploy/locks/
# Wheels only, but for quantile-python, which is plain Python and comes as source alone.
RUN python3 -m venv /opt/kubenetmon \
    && pip="/opt/kubenetmon/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes" \
    && $pip --only-binary :all: -r deploy/locks/build.lock \
    && $pip --only-binary :all: --no-binary quantile-python --no-build-isolation -r deploy/locks/runtime.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY csrc csrc
COPY kubenetmon kubenetmon
RUN /opt/kubenetmon/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps \
        --no-build-isolation . \
    && /opt/kubenetmon/bin/pip uninstall --quiet --yes setuptools pip \
    && find /opt/kubenetmon -depth -type d -name tests -exec rm -r {} + \
    && find /opt/kubenetmon -name '*.so' ! -path '*.libs/*' -exec strip --strip-unneeded {} + \
    && find /opt/kubenetmon/bin -type f ! -name kubenetmon -delete

FROM ${DEBIAN}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates libmnl0 libnetfilter-conntrack3 python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/*.log /var/log/apt \
        /usr/share/doc /usr/share/man \
    && groupadd --system --gid 65532 kubenetmon \
    && useradd --system --uid 65532 --gid 65532 --home-dir /nonexistent --shell /usr/sbin/nologin kubenetmon \
    && mkdir -p /etc/kubenetmon-server /etc/clickhouse /run/kubenetmon \
    && install -d -o 65532 -g 65532 /var/cache/kubenetmon
COPY --from=build /opt/kubenetmon /opt/kubenetmon
ENV PATH=/opt/kubenetmon/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kubenetmon" \
      org.opencontainers.image.description="Exact data-transfer metering for Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
# The agent's pod asks for user 0 with NET_ADMIN alone; everything else runs as this one.
USER 65532:65532
# kubenetmon --role agent | --role server | schema apply | …; health is for the pods' probes (/live, /ready).
ENTRYPOINT ["/opt/kubenetmon/bin/kubenetmon"]
