# Sourced by the scripts beside it: finding a Python, making environments. Needs bash; prints on standard error.

say() { printf '%s\n' "$*" >&2; }

# Print the absolute path of a Python >= 3.10 that can make virtual environments; $PYTHON is tried alone if set.
find_python() {
    local candidates=(python3.13 python3.12 python3.11 python3.10 python3) candidate found without_venv=""
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        # A name that is found need not run: version managers put shims of uninstalled versions on the path.
        found=$("$candidate" -c 'import sys; sys.version_info >= (3, 10) and print(sys.executable)' 2>/dev/null) || continue
        [ -n "$found" ] || continue
        if "$found" -c 'import venv, ensurepip' 2>/dev/null; then
            printf '%s\n' "$found"
            return 0
        fi
        without_venv=$found
    done
    if [ -n "$without_venv" ]; then
        say "$without_venv cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)"
    else
        say "no Python 3.10 or newer: tried ${candidates[*]}; PYTHON=/path/to/python names another"
    fi
    return 1
}

# Print a key of what the arguments (files or words) and the interpreter $1 are.
key_of() {
    local python=$1 item
    shift
    {
        "$python" -c 'import platform, sys; print(sys.version, sys.executable, platform.machine())'
        for item in "$@"; do
            if [ -f "$item" ]; then cat -- "$item"; else printf '%s\n' "$item"; fi
        done
    } | sha256sum | cut -c 1-16
}

# announce TEXT COMMAND...: run the command quietly under one line of progress; its output is shown if it fails.
announce() {
    local text=$1 log status=0 began=$SECONDS
    shift
    log=$(mktemp)
    printf '%s ... ' "$text" >&2
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ "$status" -eq 0 ]; then
        say "$((SECONDS - began)) s"
    else
        say "failed:"
        tail -n 30 -- "$log" >&2
    fi
    rm -f -- "$log"
    return "$status"
}

# A virtual environment that was moved, or whose Python is gone, does not run.
runs() { [ -x "$1/bin/python" ] && "$1/bin/python" -c '' 2>/dev/null; }
