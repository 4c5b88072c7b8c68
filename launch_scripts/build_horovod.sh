#!/usr/bin/env bash
# Builds Horovod for the TensorFlow and the MPI of a Python, and installs it there.
#
#   build_horovod.sh [--python PYTHON] [--mpi MPICXX | --gloo]
#
# --python PYTHON  the interpreter that gets it, with TensorFlow; default: $PYTHON, else python3
# --mpi MPICXX     the MPI that starts its ranks, by its compiler; default: the mpicxx beside that Python, else the
#                  first one on the path; where there is none it is built for Gloo alone
# --gloo           for Gloo alone: such ranks are started by horovodrun, not by a launcher
#
# Horovod has no wheels, and one is good for the versions alone that it was built with. So it is built once for
# each set of them, which takes two to five minutes on two cores, and kept in ${XDG_CACHE_HOME:-~/.cache}/nas-hpc.
# Needed is a C++ compiler; all else that the build uses stands in an environment of its own, and is removed with
# it. Variables HOROVOD_... of the environment (HOROVOD_GPU_OPERATIONS=NCCL, say) are passed on to the build.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
. "$root/launch_scripts/environment.sh"

version=0.28.1
# What its setup.py imports and calls. CMake 4 refuses the age of its CMakeLists; setuptools 81 has no pkg_resources.
tools=("setuptools <81" wheel packaging cloudpickle psutil pyyaml "cffi >=1.15" "cmake >=3.18, <4")

fail() {
    say "$@"
    exit 1
}

wrong() {
    say "$@"
    exit 2
}

python="" mpicxx="" gloo=""
while [ $# -gt 0 ]; do
    case $1 in
    --python | --mpi)
        [ $# -gt 1 ] || wrong "$1: give the path of $([ "$1" = --mpi ] && echo an mpicxx || echo an interpreter)"
        if [ "$1" = --python ]; then python=$2; else mpicxx=$2; fi
        shift 2
        ;;
    --gloo) gloo=yes; shift ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) wrong "unknown: $1; give --python, --mpi, --gloo or --help" ;;
    esac
done
[ -z "$gloo" ] || [ -z "$mpicxx" ] || wrong "--mpi $mpicxx and --gloo: give one of the two"
given=${python:-${PYTHON:-python3}}
python=$("$given" -c 'import sys; print(sys.executable)' 2>/dev/null) && [ -n "$python" ] ||
    wrong "$given is no Python that runs: give one with --python"
cache=${XDG_CACHE_HOME:-${HOME:?}/.cache}/nas-hpc

# The interpreter's tag; TensorFlow and numpy with their versions, or "none"; the file that Horovod was installed from.
facts() {
    "$python" - <<'END'
import json
import sys
from importlib import metadata
from importlib.util import find_spec


def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def tensorflow():
    if find_spec("tensorflow") is None:
        return "none"
    names = [name for name in ("tensorflow-cpu", "tensorflow", "tensorflow-rocm") if version(name) != "none"]
    names += sorted(metadata.packages_distributions().get("tensorflow", [])) if not names else []
    return f"{names[0]}-{version(names[0])}" if names else "none"


def installed():
    try:
        told = metadata.distribution("horovod").read_text("direct_url.json")
        return json.loads(told or "{}").get("url", "").removeprefix("file://")
    except metadata.PackageNotFoundError:
        return ""


print(f"cp{sys.version_info[0]}{sys.version_info[1]}")
print(tensorflow())
print(f"numpy-{version('numpy')}")
print(installed() or "-")
END
}

# mpi_of MPICXX: name and version of its MPI, as its header has them.
mpi_of() {
    "$1" -E -dM -x c++ - 2>/dev/null <<<'#include <mpi.h>' | awk '
        $1 == "#define" { gsub(/"/, "", $3); value[$2] = $3 }
        END {
            if ("I_MPI_VERSION" in value) print "intelmpi-" value["I_MPI_VERSION"]
            else if ("OMPI_MAJOR_VERSION" in value)
                print "openmpi-" value["OMPI_MAJOR_VERSION"] "." value["OMPI_MINOR_VERSION"] "." value["OMPI_RELEASE_VERSION"]
            else if ("MVAPICH2_VERSION" in value) print "mvapich-" value["MVAPICH2_VERSION"]
            else if ("MPICH_VERSION" in value) print "mpich-" value["MPICH_VERSION"]
            else if ("MPI_VERSION" in value) print "mpi-" value["MPI_VERSION"]
        }'
}

# Which MPI: sets mpicxx and mpi, or says why there is none.
choose_mpi() {
    mpi=gloo
    [ -z "$gloo" ] || return 0
    if [ -n "$mpicxx" ]; then
        [ "${mpicxx##*/}" = mpicxx ] || wrong "--mpi $mpicxx: give the path of an mpicxx"
        mpi=$(mpi_of "$mpicxx") && [ -n "$mpi" ] || wrong "--mpi $mpicxx does not compile a line with <mpi.h>"
        return 0
    fi
    mpicxx=${python%/*}/mpicxx
    [ -x "$mpicxx" ] || mpicxx=$(command -v mpicxx) || mpicxx=""
    if [ -z "$mpicxx" ]; then
        say "no MPI (no mpicxx beside $python or on the path; --mpi names one): Horovod is built for Gloo alone, with" \
            "which horovodrun starts ranks, and a launcher cannot"
        return 0
    fi
    mpi=$(mpi_of "$mpicxx") && [ -n "$mpi" ] || fail "$mpicxx does not compile a line with <mpi.h>; --mpi names another"
}

# Headers that Horovod looks for where TensorFlow from 2.19 on has others: prints what CPATH needs.
moved_headers() {
    local include
    include=$("$python" -c 'from importlib.util import find_spec
from pathlib import Path
print(Path(find_spec("tensorflow").submodule_search_locations[0]) / "include")')
    [ ! -f "$include/tensorflow/compiler/xla/client/xla_builder.h" ] &&
        [ -f "$include/xla/hlo/builder/xla_builder.h" ] || return 0
    mkdir -p -- "$1/tensorflow/compiler/xla/client"
    printf '#pragma once\n#include "xla/hlo/builder/xla_builder.h"\n' >"$1/tensorflow/compiler/xla/client/xla_builder.h"
    printf '%s:%s:%s' "$1" "$include/external/highwayhash" "$include/external/farmhash_archive/src"
}

# An environment with the tools, which sees what the interpreter's own sees after them.
make_builder() {
    local seen=$1/seen.pth
    "$python" -m venv --clear "$1" && "$1/bin/python" -m pip install "${tools[@]}" || return
    "$python" -c 'import sys, sysconfig
from pathlib import Path
standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
for path in map(Path, sys.path[1:]):
    if path.is_dir() and path.resolve() not in standard and path.name != "lib-dynload":
        print(f"import site; site.addsitedir({str(path.resolve())!r})")' >"$seen" || return
    mv -- "$seen" "$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/"
}

# build FOLDER WHEELS: no isolation, for an isolated build does not see TensorFlow.
build() {
    local builder=$1/builder headers with=(HOROVOD_WITH_MPI=1) jobs
    make_builder "$builder" && headers=$(moved_headers "$1/headers") || return
    [ "$mpi" != gloo ] || with=(HOROVOD_WITHOUT_MPI=1)
    jobs=$(nproc 2>/dev/null || echo 2)
    env PATH="$builder/bin:${mpicxx:+${mpicxx%/*}:}$PATH" TMPDIR="$1" MAKEFLAGS="-j$((jobs > 16 ? 16 : jobs))" \
        ${headers:+CPATH="$headers${CPATH:+:$CPATH}"} TF_CPP_MIN_LOG_LEVEL=2 \
        HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 HOROVOD_WITH_GLOO=1 "${with[@]}" \
        "$builder/bin/python" -m pip wheel --no-deps --no-build-isolation --wheel-dir "$2" "horovod==$version"
}

# The wheel of the key, built if it is not there: complete or not at all. Sets wheel.
find_wheel() {
    local folder
    wheel=$(compgen -G "$wheels/horovod-*.whl" || true)
    [ -z "$wheel" ] || return 0
    for compiler in g++ c++ ""; do
        [ -n "$compiler" ] || fail "no C++ compiler (g++): Debian and Ubuntu: apt-get install g++; elsewhere a module of" \
            "the machine's"
        ! command -v "$compiler" >/dev/null || break
    done
    folder=$(mktemp -d "${TMPDIR:-/tmp}/horovod.XXXXXX")
    # shellcheck disable=SC2064  # this folder
    trap "rm -rf -- '$folder' '$wheels.new'" EXIT
    rm -rf -- "$wheels.new"
    announce "Building Horovod $version for $tensorflow and ${mpi/gloo/Gloo alone}, two to five minutes" \
        build "$folder" "$wheels.new" || exit 1
    mv -- "$wheels.new" "$wheels"
    wheel=$(compgen -G "$wheels/horovod-*.whl")
}

install_wheel() {
    "$python" -m pip install --no-deps --force-reinstall "$wheel" &&
        "$python" -m pip install cloudpickle packaging psutil pyyaml
}

# It loads, and was built for what it should be. Its MPI library is found by mpi4py, or by the library path.
try_it() {
    TF_CPP_MIN_LOG_LEVEL=2 "$python" -c 'import contextlib, sys
with contextlib.suppress(ModuleNotFoundError):
    from mpi4py import MPI
import horovod.tensorflow as hvd
sys.exit(0 if hvd.gloo_built() and bool(hvd.mpi_built()) is (sys.argv[1] != "gloo") else "it was built for another way")' "$mpi"
}

mapfile -t told < <(facts)
[ "${#told[@]}" -eq 4 ] && [ "${told[1]}" != none ] ||
    fail "no TensorFlow in $python: pip install nas-hpc[nas], or -r constraints/tensorflow.txt, comes first"
tensorflow=${told[1]}
choose_mpi
options=$(env | grep '^HOROVOD_' | LC_ALL=C sort || true)
[ -z "$options" ] || options=$(printf '%s' "$options" | sha256sum | cut -c 1-8)
wheels=$cache/horovod-$version-${told[0]}-$(uname -m)-$tensorflow-${told[2]}-$mpi${options:+-$options}
mkdir -p -- "$cache"
exec 8>"$cache/horovod.lock"
flock 8 # two at once must not both build it
find_wheel
touch -c "$wheels" # what is used is kept
if [ "${told[3]}" = "$wheel" ]; then
    say "Horovod $version for $tensorflow and ${mpi/gloo/Gloo alone} is installed in $python"
    exit 0
fi
announce "Installing it into $python" install_wheel || exit 1
announce "Loading it" try_it || fail "Horovod does not load in $python: see above"
[ "$mpi" = gloo ] || "$python" -c 'import mpi4py' 2>/dev/null ||
    say "without mpi4py in $python Horovod finds its MPI library by LD_LIBRARY_PATH alone: pip install nas-hpc[mpi]"
