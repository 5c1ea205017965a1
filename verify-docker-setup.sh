#!/usr/bin/env bash
# Checks the compose set-up: the file itself, and with --running the services that it started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
SERVICES="api cell-worker grafana migrate postgres prometheus redis scheduler worker"
PROFILED="gpu-worker nginx"
PORTS="8000 6379 9090 3000"

say() { echo "verify-docker-setup: $*"; }
fail() { say "$1" >&2; echo "  Next: $2" >&2; exit 1; }

# Docker's own compose, else the one that bin/setup --dev installs (it checks files, no engine needed).
if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
elif [ -x .venv/bin/docker-compose ]; then
    compose=(.venv/bin/docker-compose)
else
    fail "no Docker Compose is here" "install Docker with its compose plugin, or run bin/setup --dev to check the file alone"
fi

"${compose[@]}" config -q || fail "docker-compose.yml is not valid" "correct what the line above names"
found=$("${compose[@]}" --profile gpu --profile nginx config --services | sort | tr '\n' ' ')
for service in $SERVICES $PROFILED; do
    case " $found " in *" $service "*) ;; *) fail "service $service is missing" "restore it in docker-compose.yml" ;; esac
done
published=$("${compose[@]}" config | sed -n 's/^ *published: "\([0-9]*\)"/\1/p')
for port in $PORTS; do
    grep -qx "$port" <<<"$published" || fail "port $port is not published" "restore it in docker-compose.yml"
done
for file in Dockerfile deploy/prometheus/prometheus.yml deploy/prometheus/rules.yml deploy/nginx/labsched.conf \
    deploy/grafana/provisioning/datasources/prometheus.yml deploy/grafana/dashboards/labsched.json; do
    [ -s "$file" ] || fail "$file is missing" "restore it from the repository"
done
say "docker-compose.yml is valid: $found"

[ "${1:-}" = "--running" ] || { say "to check running services too: docker compose up -d --build, then $0 --running"; exit 0; }

answers() { curl -fsS --max-time 10 -o /dev/null "$1" || fail "$2 does not answer at $1" "docker compose logs $2"; }
answers http://127.0.0.1:8000/health/live api
answers http://127.0.0.1:9090/-/ready prometheus
answers http://127.0.0.1:3000/api/health grafana
"${compose[@]}" exec -T redis redis-cli ping >/dev/null || fail "redis does not answer" "docker compose logs redis"
"${compose[@]}" exec -T postgres pg_isready -q -U labsched || fail "postgres does not answer" "docker compose logs postgres"
curl -sS --max-time 10 http://127.0.0.1:8000/health || true
echo
answers http://127.0.0.1:8000/health "worker scheduler"
say "everything runs"
