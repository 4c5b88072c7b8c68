#!/usr/bin/env bash
# From a fresh clone to the end of a search on real data, in under three minutes. Safe to run again: what is
# installed stays, and a search that was interrupted goes on. Arguments are handed on to the search.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
. "$root/launch_scripts/environment.sh"
cd -- "$root"

venv=$root/.venv
python=$(find_python)
key=$(key_of "$python" setup.cfg pyproject.toml "$root")
if ! runs "$venv" || [ "$(cat "$venv/.nas-hpc-key" 2>/dev/null)" != "$key" ]; then
    runs "$venv" || announce "Making .venv with $python" "$python" -m venv --clear "$venv"
    announce "Installing nas-hpc into .venv, about half a minute" "$venv/bin/python" -m pip install -e "$root"
    printf '%s\n' "$key" >"$venv/.nas-hpc-key"
fi

# The site is nas_hpc_site here, also in a shell in which another one is activated.
unset NAS_HPC_SITE
export PATH="$venv/bin:$PATH"
exec nas-hpc run hps quickstart -p nas_hpc.problems.hps.digits.Problem -r nas_hpc.problems.hps.digits.run \
    --max-evals 40 "$@"
