#!/bin/bash
# Runs the jobs of the workflow TEST on 10 nodes of Polaris (queue prod) for 180 minutes at most.
#
# Edit: PROJECT (that pays for it), /path/to/site (made by nas-hpc init), /path/to/venv (bin/nas-hpc
# is in it), /home/ME, the workflow TEST; queue, nodes and time in the directives (the time again in
# NAS_HPC_BATCH_WALLTIME).
#
# Submit it: qsub -k doe batch.sh
# The same without a script: nas-hpc submit-launch --machine polaris -n 10 -t 180 --job-mode serial --wf-filter TEST -q prod -A PROJECT
#PBS -N TEST
#PBS -A PROJECT
#PBS -q prod
#PBS -l select=10
#PBS -l walltime=03:00:00
#PBS -l place=scatter
#PBS -l filesystems=home:eagle
#PBS -j oe
#PBS -o /path/to/site/qsubmit/TEST.output

# The launcher asks qstat when the job ends; where qstat is silent, it counts from here.
export NAS_HPC_BATCH_START=$(date +%s)
export NAS_HPC_BATCH_WALLTIME=03:00:00

# The environment first, then the launcher.
# Made by nas-hpc 0.1.0 from pbs.sh.j2; how to use a template of your own: docs/commands.md.

# A batch system may give hardly any environment, or all of that of the shell that submitted.
unset NAS_HPC_ATTEMPT NAS_HPC_BATCH_JOB NAS_HPC_DATA_PARALLEL NAS_HPC_ENDPOINT NAS_HPC_JOB_DIR NAS_HPC_JOB_ID NAS_HPC_LAUNCHER_ID NAS_HPC_LOCAL_RANK NAS_HPC_METRIC_FORMAT NAS_HPC_OLD_PS NAS_HPC_PROBLEM NAS_HPC_RANK NAS_HPC_RANKS NAS_HPC_RANKS_PER_NODE NAS_HPC_RECONNECT_S NAS_HPC_REQUIRED_METRICS NAS_HPC_REWARD_SCALING NAS_HPC_STAGED NAS_HPC_TARGET_METRIC NAS_HPC_TRIAL NAS_HPC_TRIAL_DIR NAS_HPC_TRIAL_LATENCY NAS_HPC_TRIAL_SEED NAS_HPC_TRIAL_STAGE NAS_HPC_WORKFLOW
export PATH=/path/to/venv/bin:${PATH:-/usr/local/bin:/usr/bin:/bin}
[ -n "${HOME:-}" ] || export HOME=/home/ME
export NAS_HPC_SITE=/path/to/site
export NAS_HPC_MACHINE=polaris
cd /path/to/site/qsubmit

# Nothing may stand between the batch system's signals and the launcher: hence exec.
exec nas-hpc launcher --job-mode serial --wf-filter TEST
