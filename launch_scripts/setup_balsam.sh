#!/usr/bin/env bash
# Makes an environment with Balsam classic, and settings of Balsam for this machine.
#
#   setup_balsam.sh [--directory DIRECTORY] [--python PYTHON] [--postgres DIRECTORY] [--listen ADDRESSES]
#                   [--nodes N] [--settings] [--set NAME=VALUE]... [--quiet]
#
# --directory DIRECTORY  where the environment stands; default: below ${XDG_CACHE_HOME:-~/.cache}/nas-hpc, made once
# --python PYTHON        the interpreter to make it with, 3.8 to 3.11; default: $PYTHON, else one on the path
# --postgres DIRECTORY   where PostgreSQL's initdb and pg_ctl stand; default: as the path or the distribution has them
# --listen ADDRESSES     on which addresses a job database listens; default: this host's own where it has no batch
#                        system, else all ("*"), for compute nodes have to reach it
# --nodes N              so many virtual nodes of this host, for jobs in mpi mode: a node file for COBALT_NODEFILE
# --settings             write ~/.balsam/settings.json anew; without it one that is there is left as it is
# --set NAME=VALUE       a setting of Balsam's in that file, such as SERIAL_CORES_PER_NODE=16; may be given several times
# --quiet                print the directory for the path alone
#
# A file of settings that is changed is kept beside the new one. Nothing of Balsam comes into the interpreter of the
# searches: what they need of it, and PostgreSQL's programs, stand in one directory, to be put on the path. As root,
# which PostgreSQL refuses, those programs run as the user postgres or nobody.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
. "$root/launch_scripts/environment.sh"

# Balsam 0.5.0 uses names that numpy 1.24 and Django 5 have no more; numpy 1.23 has wheels up to Python 3.11.
pins=("balsam-flow ==0.5.0" "Django ==4.2.*" "numpy ==1.23.5" "mpich >=4.2, <6")

fail() {
    say "$@"
    exit 1
}

wrong() {
    say "$@"
    exit 2
}

directory="" python=${PYTHON:-} postgres="" listen="" nodes="" anew="" quiet="" values=()
while [ $# -gt 0 ]; do
    case $1 in
    --directory | --python | --postgres | --listen | --nodes | --set)
        [ $# -gt 1 ] || wrong "$1: give a value; --help tells of what kind"
        case $1 in
        --directory) directory=$2 ;;
        --python) python=$2 ;;
        --postgres) postgres=$2 ;;
        --listen) listen=$2 ;;
        --nodes) nodes=$2 ;;
        --set) values+=("$2") ;;
        esac
        shift 2
        ;;
    --settings) anew=yes; shift ;;
    --quiet) quiet=yes; shift ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) wrong "unknown: $1; --help tells what there is" ;;
    esac
done
[[ -z $nodes || $nodes =~ ^[1-9][0-9]{0,3}$ ]] || wrong "--nodes $nodes: give a number of nodes, 1 to 9999"
# Balsam knows this host's nodes by its name: all of them are this host.
[ -z "$nodes" ] || values=(WORKER_DETECTION_TYPE=COOLEY MPI_RUN_TEMPLATE=MPICHCommand ${values[@]+"${values[@]}"})
: "${HOME:?is not set: Balsam keeps its settings below it}"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nas-hpc

# Print the absolute path of an interpreter that Balsam's pins have wheels for.
find_old_python() {
    local candidates=(python3.11 python3.10 python3.9 python3.8 python3) candidate found
    [ -z "$python" ] || candidates=("$python")
    for candidate in "${candidates[@]}"; do
        found=$("$candidate" -c 'import sys, venv, ensurepip
(3, 8) <= sys.version_info[:2] <= (3, 11) and print(sys.executable)' 2>/dev/null) || continue
        [ -n "$found" ] || continue
        printf '%s\n' "$found"
        return 0
    done
    say "Balsam 0.5.0 needs a Python 3.8 to 3.11 that can make environments (venv): tried ${candidates[*]};" \
        "--python names another"
    return 1
}

# Print the directory of initdb and pg_ctl.
find_postgres() {
    local candidates=() candidate
    if [ -n "$postgres" ]; then
        candidates=("$postgres")
    else
        candidate=$(command -v postgres) && candidates+=("$(dirname -- "$(readlink -f -- "$candidate")")")
        mapfile -O "${#candidates[@]}" -t candidates < <(compgen -G '/usr/lib/postgresql/*/bin' | sort -rV
            compgen -G '/usr/pgsql-*/bin' | sort -rV
            compgen -G '/usr/local/pgsql/bin' || true)
    fi
    for candidate in ${candidates[@]+"${candidates[@]}"}; do
        if [ -x "$candidate/initdb" ] && [ -x "$candidate/pg_ctl" ] && [ -x "$candidate/postgres" ]; then
            (CDPATH='' cd -- "$candidate" && pwd -P)
            return 0
        fi
    done
    say "no PostgreSQL ${postgres:+in $postgres }(initdb, pg_ctl, postgres): Debian and Ubuntu: apt-get install" \
        "postgresql; elsewhere a module of the machine's; --postgres names the directory of its programs"
    return 1
}

# Print the user that PostgreSQL runs as, where root calls it.
find_account() {
    local name
    [ "$(id -u)" -eq 0 ] || return 0
    for name in postgres nobody; do
        ! getent passwd "$name" >/dev/null || { printf '%s\n' "$name"; return 0; }
    done
    say "PostgreSQL refuses root, and there is neither a user postgres nor nobody to run it as"
    return 1
}

install_balsam() {
    "$found_python" -m venv --clear "$1" && "$1/bin/python" -m pip install "${pins[@]}" &&
        "$1/bin/python" -c 'import django, numpy, psycopg2, zmq' && touch "$1/.complete"
}

# PostgreSQL's programs as Balsam calls them: by name, without a host, and on some machines as root.
write_postgres() {
    cat <<END
#!/bin/sh
# PostgreSQL's program of this name for Balsam's databases; written by setup_balsam.sh.
set -eu
bin='$found_postgres'
account='$account'
listen='$listen'
END
    cat <<'END'
program=${0##*/}
user=$(id -un)
[ -z "$account" ] || [ "$(id -u)" -eq 0 ] || account="" # made by root, called by another
: "${USER:=$user}" "${TMPDIR:=/tmp}"
export USER

# Whose directory it is, nobody else enters: who reaches the socket is let in without a password.
sockets=/tmp/nas-hpc-postgres-$(id -u)
mkdir -m 700 "$sockets" 2>/dev/null || {
    owner=$(stat -c %U "$sockets")
    [ ! -L "$sockets" ] && { [ "$owner" = "$user" ] || [ "$owner" = "${account:-$user}" ]; }
} || {
    echo "$program: $sockets belongs to another user: remove it" >&2
    exit 1
}

# Relative paths are made absolute: the account may not be able to stand here.
data="" log="" before="" left=$#
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    case $before$word in -D/* | -l/*) ;; -D* | -l*) [ -z "$before" ] || word=$PWD/$word ;; esac
    case $before in -D) data=$word ;; -l) log=$word ;; esac
    case $word in -D | -l) before=$word ;; *) before="" ;; esac
    set -- "$@" "$word"
    left=$((left - 1))
done

# As the account: it gets what it has to write, and its way there has to be open to it.
as_account() {
    [ -n "$account" ] || exec "$@"
    chown "$account" "$sockets"
    cd / # where the account may stand
    exec setpriv --reuid "$account" --regid "$(id -g "$account")" --clear-groups -- "$@"
}

give() {
    [ -n "$account" ] && [ -n "$data" ] || return 0
    mkdir -p -m 700 "$data"
    chown "$account" "$data"
    # Balsam, as root, writes the files of settings anew.
    find "$data" -maxdepth 1 -type f ! -user "$account" -exec chown "$account" {} +
    [ -z "$log" ] || { touch "$log" && chown "$account" "$log"; }
    setpriv --reuid "$account" --regid "$(id -g "$account")" --clear-groups -- test -w "$data" || {
        echo "$program: $data: the user $account, as whom PostgreSQL runs for root, does not get there:" \
            "its directories have to let others pass (chmod o+x)" >&2
        exit 1
    }
}

case $program in
initdb)
    give
    as_account "$bin/initdb" "$@"
    ;;
pg_ctl)
    starts=""
    for word; do case $word in start | restart) starts=yes ;; esac; done
    [ -n "$starts" ] || as_account "$bin/pg_ctl" "$@"
    give
    # Balsam asks for 2 GB, whatever the machine has.
    megabytes=$(awk '/^MemTotal:/ { n = int($2 / 8192); print (n > 2048 ? 2048 : n < 16 ? 16 : n) }' /proc/meminfo)
    as_account "$bin/pg_ctl" -o "-c unix_socket_directories=$sockets -c shared_buffers=${megabytes}MB${listen:+ -c listen_addresses=$listen}" "$@"
    ;;
*)
    export PGHOST="${PGHOST:-$sockets}"
    exec "$bin/$program" "$@"
    ;;
esac
END
}

write_balsam() {
    cat <<END
#!/bin/sh
'''exec' "$directory/bin/python3" "\$0" "\$@"
' '''
# The program balsam of this environment, whose path may be too long for the first line; by setup_balsam.sh.
import json
import os
import pwd
import sys

END
    cat <<'END'
if not os.environ.get("USER"):  # initdb is called with it
    os.environ["USER"] = pwd.getpwuid(os.geteuid()).pw_name
if sys.argv[1:2] == ["launcher"] and not os.environ.get("COBALT_NODEFILE"):
    path = os.path.expanduser("~/.balsam/settings.json")
    try:
        with open(path) as file:
            kind = json.load(file)["WORKER_DETECTION_TYPE"]
    except (OSError, ValueError, KeyError):
        kind = ""
    if kind == "COOLEY":  # it would fail in its log alone, and hang
        sys.exit(
            "balsam launcher: COBALT_NODEFILE is not set, and %s (WORKER_DETECTION_TYPE) wants it: export it, or "
            "setup_balsam.sh --set WORKER_DETECTION_TYPE=DEFAULT" % path
        )
from balsam.scripts.cli import main

sys.exit(main())
END
}

# The MPI of the machine where there is one, else that of the environment.
write_mpirun() {
    printf "#!/bin/sh\n# For Balsam's launcher: the next program of this name on the path, else the environment's; by setup_balsam.sh.\n"
    printf "own='%s'\nhere='%s'\n" "$directory/bin" "$directory/path"
    cat <<'END'
program=${0##*/}
IFS=:
for one in $PATH; do
    [ "$one" != "$here" ] && [ -x "$one/$program" ] && exec "$one/$program" "$@"
done
exec "$own/$program" "$@"
END
}

# put FILE: what comes in is the program FILE, whole at any time.
put() {
    cat >"$1.new$$"
    chmod 755 "$1.new$$"
    mv -f -- "$1.new$$" "$1"
}

fill_path() {
    local program
    mkdir -p -- "$directory/path"
    write_balsam | put "$directory/path/balsam"
    # It asks the first python on the path for its version, which is not Balsam's, and need not be there.
    sed '/^py_version=/,/^fi$/d' "$directory/bin/balsamactivate" | put "$directory/path/balsamactivate"
    ln -sfn -- ../bin/balsamdeactivate "$directory/path/balsamdeactivate"
    write_postgres | put "$directory/path/pg_ctl"
    for program in initdb createdb psql pg_dump pg_restore; do
        [ ! -x "$found_postgres/$program" ] || ln -sfn pg_ctl "$directory/path/$program"
    done
    write_mpirun | put "$directory/path/mpirun"
    ln -sfn mpirun "$directory/path/mpiexec"
    [ -z "$nodes" ] || printf "$(hostname)%.0s\n" $(seq "$nodes") | put "$directory/nodes-$nodes"
}

# ~/.balsam/settings.json: every name that Balsam knows, for it replaces a file that lacks one by Theta's.
write_settings() {
    "$directory/bin/python" - "$HOME/.balsam" "$anew" ${values[@]+"${values[@]}"} <<'END'
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

directory, anew, *given = sys.argv[1:]
path = os.path.join(directory, "settings.json")
package = os.path.join(os.path.dirname(find_spec("balsam").origin), "django_config")
with open(os.path.join(package, "default_settings.json")) as file:
    defaults = json.load(file)


def stop(line):
    print(line, file=sys.stderr)
    sys.exit(2)


def output(*command):
    """What a program says; None: it is not here, or fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def mpi():
    if shutil.which("aprun"):
        return "ThetaMPICommand"
    said = output("mpirun", "--version")
    if said is None and has_slurm():
        return "SlurmMPICommand"
    return "OpenMPICommand" if said and re.search("Open MPI|OpenRTE|PRRTE", said) else "MPICHCommand"


def has_slurm():
    return not shutil.which("qsub") and output("sinfo", "--noheader") is not None


def of_this_machine():
    settings = dict(defaults)
    settings["MPI_RUN_TEMPLATE"] = template = mpi()
    slurm = has_slurm()
    settings["WORKER_DETECTION_TYPE"] = (
        "THETA" if template == "ThetaMPICommand"
        else "SLURM" if template == "SlurmMPICommand"
        else "COOLEY" if os.environ.get("COBALT_NODEFILE") else "DEFAULT"
    )
    settings["SCHEDULER_CLASS"] = "SlurmScheduler" if slurm else "CobaltScheduler"
    submit, status = ("sbatch", "squeue") if slurm else ("qsub", "qstat")
    settings["SCHEDULER_SUBMIT_EXE"] = shutil.which(submit) or "/usr/bin/" + submit
    settings["SCHEDULER_STATUS_EXE"] = shutil.which(status) or "/usr/bin/" + status
    if slurm:
        settings["JOB_TEMPLATE"] = "job-templates/bebop.slurm.tmpl"
    elif template != "ThetaMPICommand":
        settings["JOB_TEMPLATE"] = "job-templates/nas-hpc.tmpl"
    # Balsam binds serial jobs to cores 0 to this number, and a core that is not ours is an error.
    cores = sorted(os.sched_getaffinity(0))
    settings["SERIAL_CORES_PER_NODE"] = len(cores) if cores == list(range(len(cores))) else os.cpu_count()
    return settings


TEMPLATE = """#!/bin/bash
#COBALT -A {{ project }}
#COBALT -n {{ nodes }}
#COBALT -q {{ queue }}
#COBALT -t {{ time_minutes }}
{% if sched_flags %}#COBALT {{ sched_flags }}
{% endif %}
export PATH={{ balsam_bin }}:{{ pg_bin }}:$PATH

source balsamactivate {{ balsam_db_path }}
balsam launcher --{{ wf_filter }} --job-mode={{ job_mode }} --time-limit-minutes={{ time_minutes-2 }}
source balsamdeactivate
"""


def save(path, text):
    with open(path + ".new", "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def kept(path):
    """Where the old file goes."""
    number = 1
    while os.path.exists("%s.before%d" % (path, number)):
        number += 1
    return "%s.before%d" % (path, number)


old = None
if os.path.exists(path):
    try:
        with open(path) as file:
            old = json.load(file)
    except ValueError:
        print("%s is no JSON: written anew" % path, file=sys.stderr)
settings = dict(old) if old is not None and not anew else of_this_machine()
lacking = sorted(set(defaults) - set(settings))
if lacking:
    print("%s lacks %s, so Balsam would replace it: completed" % (path, ", ".join(lacking)), file=sys.stderr)
    settings = {**of_this_machine(), **settings}
for word in given:
    name, sign, text = word.partition("=")
    if not sign or name not in defaults:
        stop("--set %s: give NAME=VALUE, with one of the names %s" % (word, ", ".join(sorted(defaults))))
    value = float(text) if re.fullmatch(r"[0-9]*\.[0-9]+", text) else int(text) if re.fullmatch(r"[0-9]+", text) else text
    if isinstance(defaults[name], int) and isinstance(value, str):
        stop("--set %s: it has to be a number" % word)
    settings[name] = value
os.makedirs(os.path.join(directory, "job-templates"), exist_ok=True)
for name in os.listdir(os.path.join(package, "job-templates")):
    target = os.path.join(directory, "job-templates", name)
    if not os.path.exists(target):
        shutil.copy(os.path.join(package, "job-templates", name), target)
if not os.path.exists(os.path.join(directory, "job-templates", "nas-hpc.tmpl")):
    save(os.path.join(directory, "job-templates", "nas-hpc.tmpl"), TEMPLATE)
if settings != old:
    if os.path.exists(path):
        before = kept(path)
        os.rename(path, before)
        print("%s is written anew; the old one is %s" % (path, before), file=sys.stderr)
    save(path, json.dumps(settings, indent=1) + "\n")
END
}

found_python=$(find_old_python)
found_postgres=$(find_postgres)
account=$(find_account)
if [ -z "$listen" ]; then
    listen=localhost,$(hostname)
    ! { command -v qsub || sinfo --noheader; } >/dev/null 2>&1 || listen=*
fi
[[ $listen =~ ^[A-Za-z0-9.:,*_-]+$ ]] || wrong "--listen $listen: give addresses or names with commas between them, or *"
mkdir -p -- "$cache"
[ -n "$directory" ] || directory=$cache/balsam-0.5.0-$(key_of "$found_python" "${pins[@]}")
mkdir -p -- "$(dirname -- "$directory")" 2>/dev/null || fail "$directory cannot be made: --directory names another place"
directory=$(CDPATH='' cd -- "$(dirname -- "$directory")" && pwd -P)/${directory##*/}
directory=${directory/#\/\//\/}
case $directory in *[[:space:]:\']*) wrong "$directory: Balsam cannot have white space, a colon or a quote in paths; --directory" ;; esac
[ ! -e "$directory" ] || [ -e "$directory/pyvenv.cfg" ] || [ -z "$(ls -A -- "$directory")" ] ||
    wrong "--directory $directory: is there, and is no environment"
exec 7>"$cache/balsam.lock"
flock 7 # two at once must not both make it
if [ ! -f "$directory/.complete" ] || ! runs "$directory"; then
    if ! announce "Installing Balsam 0.5.0 into $directory, about a minute" install_balsam "$directory"; then
        rm -f -- "$directory/.complete"
        exit 1
    fi
fi
touch -- "$directory" "$directory/.complete" # what is used is kept
fill_path
[ "$directory" = "$cache/balsam" ] || ln -sfn -- "$directory" "$cache/balsam" # where nas-hpc looks for it
write_settings
flock -u 7
exec 7>&-

if [ -n "$quiet" ]; then
    printf '%s\n' "$directory/path"
    exit 0
fi
cat <<END
Balsam 0.5.0 is in $directory, its settings are in $HOME/.balsam/settings.json. To use it:

  export PATH=$directory/path:\$PATH
${nodes:+  export COBALT_NODEFILE=$directory/nodes-$nodes   # $nodes virtual nodes, in mpi mode
}
  balsam init my-database                     # once
  source balsamactivate my-database
  nas-hpc balsam register my-database         # the searches, with the Python of nas-hpc
  balsam job --name search --workflow TEST --application AMBS --args '...' --yes
  balsam launcher --wf-filter TEST --job-mode $([ -n "$nodes" ] && echo mpi || echo serial)
END
