# Two stages: the first installs from locks with hashes, the second carries nothing but the result.
FROM python:3.11-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /opt/tollkeeper
COPY requirements/run.lock requirements/build.lock requirements/
RUN /opt/tollkeeper/bin/pip install --require-hashes -r requirements/run.lock \
    && python -m venv /opt/builder \
    && /opt/builder/bin/pip install --require-hashes -r requirements/build.lock
COPY pyproject.toml README.md ./
COPY config/ config/
COPY billing/ billing/
COPY proxy/ proxy/
COPY sandbox/ sandbox/
# the wheel is made by the locked setuptools, which stays behind
RUN /opt/builder/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
    && /opt/tollkeeper/bin/pip install --no-deps --no-index dist/*.whl


FROM python:3.11-slim AS run

RUN groupadd --system --gid 10001 tollkeeper \
    && useradd --system --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin tollkeeper \
    && install --directory --owner=10001 --group=10001 --mode=0750 /data
COPY --from=build /opt/tollkeeper /opt/tollkeeper
COPY proxy.toml /etc/tollkeeper/proxy.toml

# OPENAI_API_KEY comes from whoever runs the image; so does TOLLKEEPER_REDIS__URL for more than one worker
ENV PATH=/opt/tollkeeper/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    TOLLKEEPER_CONFIG=/etc/tollkeeper/proxy.toml \
    TOLLKEEPER_LISTEN__HOST=0.0.0.0 \
    TOLLKEEPER_LISTEN__PORT=8080 \
    TOLLKEEPER_DATABASE__URL=sqlite+aiosqlite:////data/tollkeeper.db \
    TOLLKEEPER_EMBEDDED__PATH=/data/embedded.db
WORKDIR /data
USER 10001:10001
VOLUME ["/data"]
EXPOSE 8080
# streams may finish: give the container more than listen.drain_seconds to stop (docker stop --time 45)
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['TOLLKEEPER_LISTEN__PORT']), timeout=2); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["tollkeeper"]
CMD ["serve"]
