# One image for web, scheduler and workers; the command decides. Built by the same set-up as bin/demo.
FROM python:3.11-slim

RUN useradd --uid 10001 --create-home labsched \
    && mkdir -p /app /data/slides \
    && chown -R labsched /app /data
WORKDIR /app
USER labsched

# The pins first: code changes do not install everything again.
COPY --chown=labsched bin/setup bin/_setup.sh bin/
COPY --chown=labsched labsched/__init__.py labsched/
COPY --chown=labsched labsched/bootstrap labsched/bootstrap
COPY --chown=labsched requirements*.txt constraints.txt package.json package-lock.json ./
# The data folder of the build is thrown away: its secret must not be in an image.
RUN LABSCHED_DATA=/tmp/build LABSCHED_CACHE=/app/var/cache PIP_NO_CACHE_DIR=1 bin/setup \
    && rm -rf /tmp/build

COPY --chown=labsched . .
ENV LABSCHED_DATA=/data LABSCHED_CACHE=/app/var/cache PYTHONUNBUFFERED=1 PATH=/app/.venv/bin:$PATH
EXPOSE 8000
CMD ["uvicorn", "labsched.asgi:application", "--host", "0.0.0.0", "--port", "8000", "--lifespan", "off", "--timeout-graceful-shutdown", "10", "--no-proxy-headers"]
