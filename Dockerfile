# The image of launcher and control plane: one program, `run` by default, `server`
# by argument. Its last stage starts from nothing and takes only the packages that
# the program needs, each with its entry in dpkg's list, so that scanners see them.
# Build it with `make image`, or by itself where registries can be reached.
ARG BASE_IMAGE=debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171
# Pinned by version only: nobody could check its digest when this was written.
ARG OPA_IMAGE=openpolicyagent/opa:1.22.0-static

# hadolint ignore=DL3006
FROM ${OPA_IMAGE} AS opa

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS system
# Packages to add, with what they need, such as git-lfs.
ARG EXTRA_PACKAGES=
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# Whatever the distribution has mended by now, so no versions.
# hadolint ignore=DL3008
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update \
 && apt-get upgrade --yes \
 && apt-get install --yes --no-install-recommends \
      binutils busybox ca-certificates dash git libstdc++6 netbase openssh-client \
      python3 python3-venv ${EXTRA_PACKAGES} \
 && rm -rf /var/lib/apt/lists/*

FROM system AS python
WORKDIR /build
# Authorities that stand between the build and its package index, if any.
COPY image/certificates/ /usr/local/share/ca-certificates/
COPY requirements/runtime.txt requirements/build.txt requirements/
# Every file is checked against its hash; pip itself stays here.
RUN update-ca-certificates \
 && export PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
 && python3 -m venv tools \
 && python3 -m venv --without-pip /opt/spacelift-launcher \
 && tools/bin/pip install --no-cache-dir --require-hashes --requirement requirements/build.txt \
 && tools/bin/pip --python /opt/spacelift-launcher/bin/python install \
      --no-cache-dir --no-compile --require-hashes --only-binary :all: \
      --requirement requirements/runtime.txt
COPY image/trim image/
RUN image/trim /opt/spacelift-launcher
COPY pyproject.toml README.md LICENSE ./
COPY launcher launcher
RUN tools/bin/hatchling build --target wheel \
 && tools/bin/pip --python /opt/spacelift-launcher/bin/python install \
      --no-cache-dir --no-compile --no-deps --no-index dist/*.whl \
 && python3 -m compileall -q /opt/spacelift-launcher/lib/python3.*/site-packages/launcher

FROM system AS files
ARG EXTRA_PACKAGES=
COPY image/collect /usr/local/sbin/
RUN collect /image \
      base-files busybox ca-certificates dash git libpython3-stdlib libstdc++6 \
      netbase openssh-client python3-minimal ${EXTRA_PACKAGES}
COPY --from=python /opt/spacelift-launcher /image/opt/spacelift-launcher
COPY --from=opa /opa /image/usr/local/bin/opa
COPY image/healthy /image/usr/local/bin/
RUN strip --strip-all /image/usr/local/bin/opa

FROM scratch
ARG VERSION=0.1.0
# For releases: the commit.
ARG REVISION=
LABEL org.opencontainers.image.title="spacelift-launcher" \
      org.opencontainers.image.description="A self-hosted private worker launcher, and its small control plane" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=files /image /
ENV PATH=/opt/spacelift-launcher/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1
USER 1983:1983
WORKDIR /var/lib/spacelift-launcher
HEALTHCHECK --start-period=1m CMD ["healthy"]
ENTRYPOINT ["spacelift-launcher"]
CMD ["run"]
