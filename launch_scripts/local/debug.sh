#!/bin/bash
# Runs a launcher on this host in the foreground, to try a search by hand.
#
# Edit: the values below. Then run it; what is given to it goes on to nas-hpc.
# A search to try: nas-hpc app --sync; nas-hpc job --name test --workflow TEST --application AMBS --args
# '--problem nas_hpc.problems.hps.polynome2.Problem --run nas_hpc.problems.hps.polynome2.run --max-evals 50'
#
# Made by nas-hpc 0.1.0 from debug.sh.j2 and local.toml.
set -euo pipefail

site=/path/to/site  # made by: nas-hpc init /path/to/site
environment=/path/to/venv  # where nas-hpc is installed: bin/nas-hpc is in it
nodes=1
minutes=10

export PATH=$environment/bin:$PATH
exec nas-hpc launcher --machine local --site "$site" --job-mode serial --wf-filter TEST \
    --nodes "$nodes" --time-limit-minutes "$minutes" "$@"
