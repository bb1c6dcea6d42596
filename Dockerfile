# The gateway, Postfix and mm4, as one container: docs/containers.md.
#
#     docker build -t mm4-gateway .
#
# Debian 12 or 13 as BASE. Where pip has to trust a certificate of your own, lay it beside this file as host.pem and
# pass --build-arg PIP_CERT=/mm4/host.pem; neither gets into the image.
ARG BASE=debian:trixie

FROM ${BASE} AS tools
WORKDIR /mm4
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev libmilter-dev python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*

FROM tools AS list
COPY pyproject.toml ./
RUN python3 -c 'import tomllib; all = tomllib.load(open("pyproject.toml", "rb")); project = all["project"]; \
        print(*project["dependencies"], *project["optional-dependencies"]["postgresql"], sep="\n", file=open("needs", "w")); \
        print(*all["build-system"]["requires"], sep="\n", file=open("build-needs", "w"))'

# What mm4 stands on, apart from mm4: made anew only where those two lists change. pip stays outside /opt/mm4.
FROM tools AS needs
ARG PIP_CERT PIP_INDEX_URL PIP_EXTRA_INDEX_URL
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY LICENSE host.pe[m] ./
COPY --from=list /mm4/needs /mm4/build-needs ./
RUN python3 -m venv tools \
 && python3 -m venv --without-pip /opt/mm4 \
 && tools/bin/pip install --quiet -r build-needs \
 && tools/bin/pip --python /opt/mm4/bin/python install --quiet --use-pep517 -r needs

FROM needs AS build
COPY README.md pyproject.toml ./
COPY postfix postfix
COPY milter milter
RUN tools/bin/pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir wheels . \
 && tools/bin/pip --python /opt/mm4/bin/python install --quiet --no-index --no-deps --prefix /mm4/gateway wheels/*.whl

FROM ${BASE}
# The ids are the same whatever the base is: a queue and a store on volumes outlive the image that made them. mm4 is in
# postdrop so that sendmail needs no set-group-id bit, which no-new-privileges takes away. main.cf says only what a
# gateway keeps of it; the rest is written when the container starts. Nothing is chrooted, so nothing is copied there.
RUN groupadd --system --gid 925 postfix \
 && groupadd --system --gid 926 postdrop \
 && groupadd --system --gid 927 mm4 \
 && useradd --system --uid 925 --gid postfix --home-dir /var/spool/postfix --no-create-home --shell /usr/sbin/nologin postfix \
 && useradd --system --uid 927 --gid mm4 --home-dir /var/lib/mm4 --no-create-home --shell /usr/sbin/nologin \
        --groups postdrop mm4 \
 && printf 'path-exclude=/usr/share/%s/*\n' man locale doc >/etc/dpkg/dpkg.cfg.d/mm4 \
 && echo 'path-include=/usr/share/doc/*/copyright' >>/etc/dpkg/dpkg.cfg.d/mm4 \
 && echo 'postfix postfix/main_mailer_type select No configuration' | debconf-set-selections \
 && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates libmilter1.0.1 libsasl2-modules postfix python3 tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/* \
 && printf '%s\n' 'compatibility_level = 3.6' 'maillog_file = /dev/stdout' >/etc/postfix/main.cf \
 && echo SYNC_CHROOT= >/etc/default/postfix \
 && install -d -m 0750 -o root -g mm4 /etc/mm4 \
 && install -d -m 0750 -o mm4 -g mm4 /var/lib/mm4
COPY --from=needs /opt/mm4 /opt/mm4
COPY milter/container/gateway /usr/local/bin/gateway
COPY --from=build /mm4/gateway /opt/mm4
RUN ln -s /opt/mm4/bin/mm4 /usr/local/bin/mm4
LABEL org.opencontainers.image.title="mm4" \
      org.opencontainers.image.description="MM4 (MMS over SMTP, 3GPP TS 23.140): Postfix and its gateway" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="GPL-2.0-or-later"
ENV LANG=C.UTF-8
# The queue, and the store with what lies beside it: all that a new container needs of the old one.
VOLUME ["/var/spool/postfix", "/var/lib/mm4"]
EXPOSE 25
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["mm4", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "gateway"]
