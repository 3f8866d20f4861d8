# The image of every process of ours: worker, migration, Flower. The command decides which it is.

# Stage 1 builds. It is thrown away, so neither the build tools nor pip's leftovers reach production.
FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/venv

# The locks come before the code: a change of code leaves these layers, the slow ones, as they are.
# Wheels only: a source archive would fetch its own build tools, and no hash of ours covers those.
COPY requirements/build.lock requirements/run.lock requirements/
RUN python -m pip install --require-hashes --only-binary=:all: -r requirements/build.lock \
 && /opt/venv/bin/python -m pip install --require-hashes --only-binary=:all: -r requirements/run.lock

# The project itself, with the build tool from the lock; --no-index proves that nothing else is fetched.
COPY pyproject.toml README.md LICENSE ./
COPY worker worker
COPY migrations migrations
RUN python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /tmp/wheels . \
 && /opt/venv/bin/python -m pip install --no-index --no-deps /tmp/wheels/*.whl


# Stage 2 runs: Python, the venv and the migrations, nothing else.
FROM python:3.12-slim
# Unbuffered: the last lines before a crash are the ones that matter.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HEALTH_PORT=8080
# docker build --build-arg REVISION=$(git rev-parse --short HEAD) --build-arg CREATED=$(date -u +%Y-%m-%dT%H:%M:%SZ) \
#   --build-arg VERSION=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' worker/version.py)
ARG REVISION=""
ARG VERSION=""
ARG CREATED=""
ENV REVISION=$REVISION
LABEL org.opencontainers.image.title="trackstar-cancel-worker" \
      org.opencontainers.image.description="Stops an order before the warehouse ships it: cancel jobs from Redis to Trackstar, the proven outcome in SQL." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
# Names for these ids, for people who look at processes; the image runs as any other user too, also with group 0
# and with a root file system that cannot be written.
RUN groupadd --gid 10001 cancel-worker \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin cancel-worker
WORKDIR /app
# Owned by root: the process can read its code and cannot change it.
COPY --from=build /opt/venv /opt/venv
# For people to read; `cancel-worker migrate` takes the same files from the package, which always fit its code.
COPY migrations migrations
# By number: Kubernetes' runAsNonRoot cannot check a name.
USER 10001:10001

# Exec form: the worker is process 1 and gets the signal itself; a shell would swallow it, and the
# requests in flight would be cut off. SIGTERM is Celery's warm shutdown.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["cancel-worker", "health"]
ENTRYPOINT ["cancel-worker"]
CMD ["run"]
