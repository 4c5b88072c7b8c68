#!/bin/bash
# Opens a shell on 2 nodes of a cluster with Slurm (queue QUEUE) for 60 minutes, to try a search by hand.
#
# Edit: the values below. Then run it on a login node; what is given to it goes on to nas-hpc.
# In the shell that opens type, as often as you like:
#     nas-hpc launcher --job-mode serial --wf-filter TEST
# It finds its nodes and the end of the allocation by itself. Ctrl-C ends it, exit ends the allocation.
# A search to try: nas-hpc app --sync; nas-hpc job --name test --workflow TEST --application AMBS --args
# '--problem nas_hpc.problems.hps.polynome2.Problem --run nas_hpc.problems.hps.polynome2.run --max-evals 50'
#
# Made by nas-hpc 0.1.0 from debug.sh.j2 and slurm.toml.
set -euo pipefail

project=PROJECT  # that pays for it
site=/path/to/site  # made by: nas-hpc init /path/to/site
environment=/path/to/venv  # where nas-hpc is installed: bin/nas-hpc is in it
nodes=2
minutes=60
queue=QUEUE

export PATH=$environment/bin:$PATH
# By hand: salloc --job-name=TEST --nodes=2 --time=60 --partition=QUEUE --account=PROJECT --exclusive --no-kill --chdir=/path/to/site/qsubmit
exec nas-hpc submit-launch --interactive --machine slurm --site "$site" \
    -n "$nodes" -t "$minutes" -q "$queue" -A "$project" "$@"
