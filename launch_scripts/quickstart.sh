#!/usr/bin/env bash
# From a fresh clone to the end of a search on real data.
#
#   quickstart.sh [arguments for the search]        hyperparameters of a network, in under three minutes
#   quickstart.sh nas [arguments for the search]    architectures of one, with TensorFlow: two minutes after its installation
#   quickstart.sh trials [arguments for it]         a cheap training for a trainer of one's own, a search with it, the full
#                                                   training of the best: two minutes (launch_scripts/proxy_chain.sh)
#
# Safe to run again: what is installed stays, and a search that was interrupted goes on.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
. "$root/launch_scripts/environment.sh"
cd -- "$root"

kind=hps
case ${1:-} in
hps | nas | trials) kind=$1 && shift ;;
-h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 0 ;;
esac

venv=$root/.venv
python=$(find_python)
# is_there NAME FILE-OR-WORD...: whether the step was done here, with the same contents; done_now NAME notes it.
is_there() { [ "$(cat "$venv/.$1-key" 2>/dev/null)" = "$(key_of "$python" "${@:2}")" ]; }
done_now() { key_of "$python" "${@:2}" >"$venv/.$1-key"; }
package=(nas-hpc setup.cfg pyproject.toml "$root") tensorflow=(tensorflow constraints/tensorflow.txt)
if ! runs "$venv" || ! is_there "${package[@]}"; then
    runs "$venv" || announce "Making .venv with $python" "$python" -m venv --clear "$venv"
    announce "Installing nas-hpc into .venv, about half a minute" "$venv/bin/python" -m pip install -e "$root"
    done_now "${package[@]}"
fi
if [ "$kind" = nas ] && ! is_there "${tensorflow[@]}"; then
    announce "Installing TensorFlow into .venv, about a minute" \
        "$venv/bin/python" -m pip install -r constraints/tensorflow.txt
    done_now "${tensorflow[@]}"
fi

# The site is nas_hpc_site here, also in a shell in which another one is activated.
unset NAS_HPC_SITE
export PATH="$venv/bin:$PATH"
if [ "$kind" = nas ]; then
    exec nas-hpc run nas quickstart-nas -p nas_hpc.problems.nas.digits_dense.Problem --app EVO \
        --max-evals 120 "$@"
fi
if [ "$kind" = trials ]; then
    exec launch_scripts/proxy_chain.sh "$@"
fi
exec nas-hpc run hps quickstart -p nas_hpc.problems.hps.digits.Problem -r nas_hpc.problems.hps.digits.run \
    --max-evals 40 "$@"
