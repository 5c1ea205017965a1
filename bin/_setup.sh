# Sourced by the commands beside it: finds a Python, runs labsched/bootstrap. Leaves the caller's
# folder alone, so that a relative path in an argument means what the caller meant.
# shellcheck shell=bash
set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

NEW_ENOUGH='import sys; sys.exit(sys.version_info < (3, 11))'

# Prints the first Python of 3.11 or newer; PYTHON, when set, is the only candidate.
find_python() {
    local candidate found
    local -a candidates=("$REPO/.venv/bin/python" python3 python3.13 python3.12 python3.11 python)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c "$NEW_ENOUGH" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    found=$("${PYTHON:-python3}" --version 2>&1 | head -n 1) || found="not there"
    {
        echo
        echo "labsched: Python 3.11 or newer is needed; ${PYTHON:-python3} is ${found:-not there}."
        echo "  Next: install one (Debian, Ubuntu: sudo apt install python3 python3-venv; macOS: brew install python@3.12)"
        echo "        or name the one to use: PYTHON=/path/to/python3.12 $0"
    } >&2
    return 1
}

# Sets everything up; quick when it is already there.
set_up() {
    local python
    python=$(find_python) || exit 1
    (cd "$REPO" && exec "$python" -m labsched.bootstrap "$@") || exit $?
}

# What a person's own stack on the loopback address wants; a variable that is set stays as it is.
local_settings() {
    export DJANGO_DEBUG="${DJANGO_DEBUG:-0}"
    export TRUST_USER_HEADER="${TRUST_USER_HEADER:-1}"
    export ALLOWED_HOSTS="${ALLOWED_HOSTS:-127.0.0.1,localhost,[::1]}"
}
