#!/usr/bin/env bash
# From the first question to a judged answer: a proxy task for a search of trials, on real data, with a trainer in numpy.
#
#   proxy_chain.sh [DIRECTORY]      two minutes on two cores; without a DIRECTORY in proxy_chain
#
#   --epochs N    of a full training (30)     --start N          models that the selection begins with (12)
#   --trials N    of the search (24)          --check N          of them that are trained in full at the end (10)
#   --accuracy-correlation X, --latency-correlation X: what a proxy task has to reach (0.65, 0.5; latencies of
#   microseconds are not quite sure on cores that others use, too)
#
# nas-hpc and deephyper-analytics have to be on the PATH; the site is the one at hand, else nas_hpc_site here.
# Safe to run again: what is finished stays, and what was interrupted goes on.
set -euo pipefail

root=proxy_chain epochs=30 start=12 trials=24 check=10 accuracy=0.65 latency=0.5
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 0 ;;
    --epochs | --start | --trials | --check)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "$1 ${2:-}: give a whole number, 1 or more" >&2 && exit 2; }
        declare "${1#--}=$2" && shift ;;
    --accuracy-correlation) accuracy=${2:?} && shift ;;
    --latency-correlation) latency=${2:?} && shift ;;
    -*) echo "$1 is unknown: see $0 --help" >&2 && exit 2 ;;
    *) root=$1 ;;
    esac
    shift
done

[ "$check" -le "$trials" ] || { echo "--check $check: the search has $trials trials, give no more" >&2 && exit 2; }

name=digits
trainer='python -m nas_hpc.problems.trials.digits_numpy'
space=nas_hpc.problems.trials.digits.search_space
common=(--trainer "$trainer" --root-output-dir "$root")

mkdir -p -- "$root"
# found JOB: the directory of a job that was begun before.
found() { find "$root" -maxdepth 1 -type d -name "$1_[0-9]*_[0-9]*" | sort | tail -n 1; }
# begun FLAG JOB ARGUMENTS...: either "FLAG DIRECTORY", to go on with the job, or the ARGUMENTS with which it begins.
begun() {
    local there
    there=$(found "$2")
    if [ -n "$there" ]; then arguments=("$1" "$there"); else arguments=("${@:3}"); fi
}
say() { printf '\n== %s\n' "$*"; }
# in_full SUFFIX NUMBERS: the full training of these trials of the search.
in_full() {
    local there
    there=$(found "search_*_$1")
    if [ -n "$there" ]; then
        there=${there##*/}
        nas-hpc search-resume "${there%_*_*}"
    else
        nas-hpc train --search-job "$name-search" --train-nas-trial-numbers "$2" --train-job-suffix "$1" \
            --train-flags "epochs=$epochs" --train-max-parallel-trial 2
    fi
}

say "1 of 6: how much does the score vary when a training is repeated?"
begun --previous-variance-dir "Variance_Measurement_$name" --job-name "$name" --search-space-module "$space" \
    "${common[@]}" --max-parallel-nas-trial 2 --seed 1 --seed-flag seed --search-flags "epochs=$epochs"
nas-hpc measure-proxy-task-variance "${arguments[@]}"

say "2 of 6: which models are the reference? $start are trained a little, 5 to the end"
begun --previous-model-selection-dir "Model_Selection_$name" --job-name "$name" --search-space-module "$space" \
    "${common[@]}" --max-parallel-nas-trial 2 --seed 1 --start-num-models "$start" --final-num-models 5 \
    --num-models-to-remove-per-iter 4 --accuracy-metric-id accuracy --search-flags "epochs=$epochs"
nas-hpc select-proxy-task-models "${arguments[@]}"

say "3 of 6: which share of the data, and how many steps, rank them as their full trainings did?"
# Three looks at each: five models are ranked rightly by chance, too, the sooner the more often one looks.
begun --previous-proxy-task-search-dir "Search_controller_$name" --job-name "$name" \
    --proxy-task-config-generator-module nas_hpc.problems.trials.digits.proxy_tasks \
    --proxy-task-model-selection-job-id "$(found "Model_Selection_$name")" --training-steps-flag steps \
    --validations-flag validations --search-flags "epochs=$epochs" validations=3 --desired-accuracy-correlation "$accuracy" \
    --desired-latency-correlation "$latency" --max-parallel-nas-trial 5 --trials-per-node 5 --look-every 1s
nas-hpc search-proxy-task "${arguments[@]}"
best=$(found "Search_controller_$name")/best_proxy_task.yaml
[ -f "$best" ] || { echo "no proxy task met what was asked for: see the correlations above" >&2 && exit 1; }

say "4 of 6: a search, whose trials are trained by the best proxy task"
if [ -n "$(found "$name-search")" ]; then
    nas-hpc search-resume "$name-search"
else
    nas-hpc search --job-name "$name-search" --search-space-module "$space" --proxy-task "$best" \
        --root-output-dir "$root" --nas-target-reward-metric accuracy --max-nas-trial "$trials" \
        --max-parallel-nas-trial 2 --algorithm ambs --seed 2
fi

say "5 of 6: the full training of its two best trials"
two=$(nas-hpc list-trials "$name-search" --state SUCCEEDED --sort reward --max-trials 2 --csv |
    awk -F, 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "trial") at = i } NR > 1 { print $at }' | paste -sd,)
in_full best "$two"
nas-hpc list-trials "$(found "search_*_best")"

say "6 of 6: does the proxy task rank models, too, that had no part in its choice? The first $check trials in full"
in_full check "$(seq -s, "$check")"
figure=$root/proxy_against_full.png
deephyper-analytics correlation "$(found "$name-search")" "$(found "search_*_check")" -o "$figure"

say "figures, after $SECONDS s"
ls "$(found "Variance_Measurement_$name")"/training_curves.png "$(found "Model_Selection_$name")"/*/filtered_trial_scores.png \
    "$(found "Search_controller_$name")"/*_accuracy_correlation_vs_training_steps.png "$(found "$name-search")"/rewards.png "$figure"
