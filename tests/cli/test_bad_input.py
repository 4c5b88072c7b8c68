"""Wrong calls: one clear line that names the value and says what would be right; nothing is changed."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from nas_hpc.cli.context import open_database
from nas_hpc.cli.sites import new_site
from nas_hpc.cli.submission import find_job
from nas_hpc.records import Lease, new_id
from nas_hpc.site import Site
from nas_hpc.store.base import Claim
from tests.cli.conftest import ECHO, Run

JOB = ("job", "--name", "new", "--workflow", "W", "--app", "echo")
_POLYNOME = "nas_hpc.problems.hps.polynome2"
SEARCH_ARGS = f"--problem {_POLYNOME}.Problem --run {_POLYNOME}.run --max-evals 2"
HPS = ("run", "hps", "new", "--app", "RAN", "--max-evals", "2")
POLYNOME = "nas_hpc.problems.hps.polynome2"


@dataclass(frozen=True)
class Case:
    """A call, the exit code, and what the line has to say: the value, and what would be right."""

    argv: tuple[str, ...]
    said: tuple[str, ...]
    code: int = 2
    prepare: Callable[[Site], object] = lambda _site: None
    name: str = ""

    @property
    def label(self) -> str:
        """A name for the report of the tests."""
        return self.name or " ".join(self.argv)[-90:].replace("/", "|")


# -- what a case needs -------------------------------------------------------------------------------
def write(name: str, text: str) -> Callable[[Site], object]:
    return lambda _site: Path(name).write_text(text)


def site_file(text: str) -> Callable[[Site], object]:
    return lambda site: site.file.write_text(text)


def variable(name: str, value: str) -> Callable[[Site], object]:
    return lambda _site: os.environ.__setitem__(name, value)  # the fixture puts the environment back


def lose_database(site: Site) -> None:
    site.database.unlink()


def spoil_database(site: Site) -> None:
    site.database.write_bytes(b"this is no database, " * 100)


def age_database(site: Site) -> None:
    with closing(sqlite3.connect(site.database)) as database:
        database.execute("update meta set value = '99' where key = 'schema'")
        database.commit()


def run_elsewhere(site: Site) -> None:
    """A launcher that lives, as this process does."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    lease = Lease(new_id(), socket.gethostname(), boot, os.getpid(), ticks, "", time.time() + 600)
    with open_database(site) as store:
        store.open_lease(lease, exclusive=True)


def claim(site: Site) -> None:
    """The job ``ready`` runs."""
    lease = Lease(new_id(), "elsewhere", "boot", 1, 1, "", time.time() + 600)
    with open_database(site) as store:
        store.open_lease(lease, exclusive=True)
        assert store.claim(lease.id, [Claim(find_job(store, "ready").id)])


def script(_site: Site) -> None:
    Path("script.sh").write_text("#!/bin/sh\n")


def modules(_site: Site) -> None:
    Path("mine.py").write_text(
        "from nas_hpc.problem import HpProblem\n"
        "Problem = HpProblem()\nProblem.add_dim('x', (0.0, 1.0))\nNothing = HpProblem()\nNumber = 3\n"
        "def run(config):\n    return 1.0\ndef two(a, b):\n    return 1.0\n"
    )


CASES = [
    # sites
    Case(("--site", "nosuch", "ls", "jobs"), ("nosuch", "does not exist", "nas-hpc init")),
    Case(
        ("ls", "jobs", "--site", "file"),
        ("file", "is a file"),
        prepare=write("file", "x"),
        name="site is a file",
    ),
    Case(("--site", ".", "ls", "jobs"), ("is no site", "nas-hpc init"), name="site is another directory"),
    Case(("--site", "", "ls", "jobs"), ("--site is empty", "give the path"), name="site is empty"),
    Case(
        ("ls", "jobs"), ("NAS_HPC_SITE=nowhere", "nas-hpc init"), prepare=variable("NAS_HPC_SITE", "nowhere")
    ),
    Case(
        ("ls", "apps"),
        ("no site", "nas-hpc init NAME"),
        prepare=variable("NAS_HPC_SITE", ""),
        name="no site at all",
    ),
    Case(
        ("ls", "jobs"),
        ("schema 2", "reads schema 1"),
        prepare=site_file("schema = 2\n"),
        name="another version",
    ),
    Case(("ls", "jobs"), ("not valid TOML",), prepare=site_file("schema = = 1"), name="broken site.toml"),
    Case(
        ("ls", "jobs"), ("lost run", "mkdir"), prepare=lambda s: shutil.rmtree(s.run), name="lost a directory"
    ),
    Case(("ls", "jobs"), ("lost its database",), prepare=lose_database, name="lost its database"),
    Case(("ls", "jobs"), ("db.sqlite3",), prepare=spoil_database, name="database is none"),
    Case(("ls", "jobs"), ("99",), prepare=age_database, name="database of another version"),
    Case(
        ("launcher",),
        ("'nods'", "did you mean 'nodes'"),
        prepare=site_file("schema=1\n[settings]\nnods = 2\n"),
    ),
    Case(
        ("launcher",),
        ("NAS_HPC_NODES", "'zero'", "0 (all there are)"),
        prepare=variable("NAS_HPC_NODES", "zero"),
    ),
    Case(("init", "made"), ("is a site already",), prepare=lambda _: new_site("made"), name="init again"),
    Case(
        ("init", "file"), ("is a file", "does not exist yet"), prepare=write("file", "x"), name="init a file"
    ),
    Case(("init", "a/b/c"), ("a/b does not exist", "mkdir -p"), name="init without a parent"),
    Case(
        ("init", "."),
        ("has other things", "new or empty"),
        prepare=write("x", ""),
        name="init a full directory",
    ),
    Case(("init", ""), ("path is empty", "nas-hpc init testdb"), name="init nothing"),
    Case(("init", "x" * 300), ("too long", "shorter"), name="init a long name"),
    Case(("init",), ("SITE", "--help"), name="init without a name"),
    # commands and flags
    Case(("jbo",), ("'jbo'", "did you mean job", "--help")),
    Case(("submit",), ("'submit'", "did you mean submit-launch", "--help")),
    Case(("xyzzy",), ("'xyzzy'", "the commands are init, app", "--help")),
    Case((*JOB, "--nodes", "2"), ("--nodes", "--help"), name="unknown flag"),
    Case(("job", "--work", "W"), ("--work", "--workflow"), name="abbreviated flag"),
    Case(("job", "--workflow", "W", "--app", "echo"), ("'--name'", "--help"), name="job without a name"),
    Case(("ls",), ("nothing to list", "jobs, apps"), name="ls of nothing"),
    Case((*HPS, "-p", "a.P", "-r", "a.r", "--nodes-per-eval", "2"), ("--nodes-per-eval 2", "--job-mode mpi")),
    Case((*HPS, "-p", "a.P", "-r", "a.r", "--args", "--ranks-per-node=4"), ("--ranks-per-node 4", "serial")),
    Case((*HPS, "-p", "a.P", "-r", "a.r", "--gpus-per-rank", "-1"), ("-1", "--help")),
    Case(("run",), ("nothing to run", "nas-hpc run hps NAME"), name="run of nothing"),
    # applications
    Case(("app",), ("nothing to do", "--name NAME --exec COMMAND"), name="app without flags"),
    Case(("app", "--name", "A"), ("--exec COMMAND is missing",), name="app without a program"),
    Case(("app", "--sync", "--rm", "A"), ("--sync and --rm do not go together",)),
    Case(("app", "--name", "A", "--exec", "no-such-program x"), ("'no-such-program'", "PATH")),
    Case(("app", "--name", "A", "--exec", "./none"), ("none does not exist",)),
    Case(("app", "--name", "A", "--exec", "./script.sh"), ("not executable", "chmod +x"), prepare=script),
    Case(("app", "--name", "A", "--exec", "/tmp"), ("/tmp is a directory",)),
    Case(("app", "--name", "A", "--exec", "python 'x"), ("python 'x", "quote needs its partner")),
    Case(("app", "--name", "A", "--exec", ""), ("names no program",)),
    Case(("app", "--name", "a/b", "--exec", "true"), ("'a/b'", "slash")),
    Case(
        ("app", "--name", "echo", "--exec", "true"),
        ("'echo'", "replace"),
        name="application is there already",
    ),
    Case(
        ("app", "--name", "echo", "--exec", ECHO, "--preprocess", "true"),
        ("'echo'", "with preprocess ''", "--replace"),
        name="application is there already, without its preprocess",
    ),
    Case(("app", "--name", "A", "--exec", "true", "--preprocess", "none.sh"), ("--preprocess", "'none.sh'")),
    Case(("app", "--name", "A", "--exec", "true", "--preprocess", " "), ("--preprocess", "no program")),
    Case(
        ("app", "--name", "A", "--exec", "true", "--postprocess", "./script.sh x"),
        ("--postprocess", "script.sh", "not executable", "chmod +x"),
        prepare=script,
    ),
    Case(
        ("app", "--name", "A", "--exec", "true", "--environment-script", "env.sh"),
        ("--environment-script", "env.sh does not exist", "path of a shell script"),
    ),
    Case(
        ("app", "--name", "A", "--exec", "true", "--environment-script", "/tmp"),
        ("--environment-script", "/tmp is no file"),
    ),
    Case(("app", "--rm", "none"), ("'none'",)),
    Case(("app", "--name", "A", "--exec", f"{sys.executable} -m nas_hpc.apps.amsb"), ("nas_hpc.apps.ambs",)),
    # jobs
    Case(("job", "--name", "n", "--workflow", "W", "--app", "eco"), ("'eco'", "echo", "nas-hpc app")),
    Case(("job", "--name", "a/b", "--workflow", "W", "--app", "echo"), ("'a/b'", "slash", "'a_b'")),
    Case(("job", "--name", "", "--workflow", "W", "--app", "echo"), ("''", "is empty"), name="empty name"),
    Case(("job", "--name", "..", "--workflow", "W", "--app", "echo"), ("'..'", "begin with a letter")),
    Case(("job", "--name", "n", "--workflow", "W X", "--app", "echo"), ("'W X'", "letters, digits")),
    Case(("job", "--name", "n" * 101, "--workflow", "W", "--app", "echo"), ("101 bytes", "at most 100")),
    Case((*JOB, "--num-nodes", "0"), ("'--num-nodes'", "0 is not allowed", "1 to")),
    Case((*JOB, "--num-nodes", "-3"), ("-3 is not allowed",)),
    Case((*JOB, "--num-nodes", "two"), ("'two' is no whole number",)),
    Case((*JOB, "--num-nodes", "1" + "0" * 30), ("is not allowed", "1 to 1000000")),
    Case((*JOB, "--ranks-per-node", "0"), ("'--ranks-per-node'",)),
    Case((*JOB, "--threads-per-rank", "0"), ("'--threads-per-rank'",)),
    Case((*JOB, "--node-packing-count", "0"), ("'--node-packing-count'",)),
    Case((*JOB, "--gpus-per-rank", "-1"), ("'--gpus-per-rank'", "-1")),
    Case((*JOB, "--wall-time-minutes", "-5"), ("'--wall-time-minutes'", "-5", "0 or more")),
    Case((*JOB, "--wall-time-minutes", "nan"), ("nan is not allowed",)),
    Case((*JOB, "--timeout", "-1"), ("'--timeout'", "-1", "seconds")),
    Case((*JOB, "--timeout", "soon"), ("'soon' is no number",)),
    Case((*JOB, "--retries", "-1"), ("'--retries'", "-1")),
    Case((*JOB, "--args", 'a "b'), ('a "b', "quote needs its partner")),
    Case((*JOB, "--env", "OMP"), ("'OMP'", "NAME=VALUE")),
    Case((*JOB, "--env", "2X=1"), ("'2X'", "letters, digits")),
    Case((*JOB, "--env", "A=1:A=2"), ("A twice", "'1'", "'2'")),
    Case((*JOB, "--env", "BALSAM_JOB_ID=1"), ("BALSAM_JOB_ID", "set by the launcher")),
    Case((*JOB, "--parents", "deadbeef"), ("deadbeef",), name="parent does not exist"),
    Case((*JOB, "--parents", "xyz"), ("--parents 'xyz'", "no job of that id or name")),
    Case((*JOB, "--on-parent-failure", "ignore"), ("'ignore'", "'fail', 'run', 'wait'")),
    Case(
        (*JOB[:-1], "RAN", "--args", f"{SEARCH_ARGS} --ranks-per-node 2"),
        ("--nodes-per-eval 1 --ranks-per-node 2", "job_mode is serial", "NAS_HPC_JOB_MODE", "mpi mode"),
        prepare=variable("NAS_HPC_JOB_MODE", "serial"),
        name="evaluations of two ranks in serial mode",
    ),
    Case((*JOB, "--preprocess", "no-such-script -x"), ("--preprocess", "'no-such-script'", "PATH")),
    Case((*JOB, "--postprocess", "true 'x"), ("--postprocess", "true 'x", "quote needs its partner")),
    Case((*JOB, "--post-error-handler"), ("--post-error-handler", "--postprocess"), name="no handler"),
    Case(
        (*JOB, "--postprocess", "", "--post-timeout-handler"),
        ("--post-timeout-handler", "no postprocess command"),
    ),
    Case((*JOB, "--input-files", "*.dat /etc/*"), ("'/etc/*'", "leads out of", "*.dat")),
    Case((*JOB, "--input-files", "a/../../b"), ("'a/../../b'", "leads out of")),
    # searches
    Case((*JOB[:-1], "RAN", "--args", "--run a.run"), ("--problem package.module.Problem",)),
    Case(
        (*JOB[:-1], "RAN", "--args", f"--problem {POLYNOME}.Problem --run nosuch.run"),
        ("'nosuch'", "PYTHONPATH"),
    ),
    Case(
        (*JOB[:-1], "RAN", "--args", f"--problem nas_hpc.probs.P --run {POLYNOME}.run"),
        ("'probs'", "problems"),
    ),
    Case(
        (*JOB[:-1], "RAN", "--args", f"--problem {POLYNOME}.Problem --run __main__.run"),
        ("__main__", "module"),
    ),
    Case(
        (*JOB[:-1], "RAN", "--args", f"--problem Problem --run {POLYNOME}.run"), ("'Problem'", "dotted name")
    ),
    Case(
        (*JOB[:-1], "RAN", "--args", f"--problem p.py --run {POLYNOME}.run"),
        ("no file p.py", "package.module.Problem"),
    ),
    Case((*HPS, "-p", "mine.Nosuch", "-r", "mine.run"), ("'mine.Nosuch'",), prepare=modules),
    Case((*HPS, "-p", "mine.Number", "-r", "mine.run"), ("'mine.Number'", "is a int"), prepare=modules),
    Case(
        (*HPS, "-p", "leaves.Problem", "-r", "mine.run"),
        ("exit code 3", "correct what is done there"),
        prepare=write("leaves.py", "import os; os._exit(3)"),
        name="a module that ends the process",
    ),
    Case((*HPS, "-p", "mine.Nothing", "-r", "mine.run"), ("no hyperparameters",), prepare=modules),
    Case(
        (*HPS, "-p", "mine.Problem", "-r", "mine.Number"),
        ("'mine.Number'", "not a function"),
        prepare=modules,
    ),
    Case((*HPS, "-p", "mine.Problem", "-r", "mine.two"), ("'mine.two'", "one argument"), prepare=modules),
    Case((*HPS, "-p", "mine.Problem", "-r", "__main__.run"), ("__main__",), prepare=modules),
    Case((*HPS, "-p", "mine.Problem", "-r", "mine.run", "--args", "--kapa 3"), ("--kapa",), prepare=modules),
    Case((*HPS, "-p", "a.P", "-r", "a.run", "--args", "--seed 3"), ("--seed", "to nas-hpc run itself")),
    Case((*HPS, "--cache-key", "to_dict"), ("--cache-key", "--args '--cache-key ...'")),
    Case(("balsam-submit", "nas", "w", "--network", "x"), ("--network", "-- --network ...")),
    Case(
        (*HPS[:3], "--app", "GP", "--max-evals", "2", "-p", "a.P", "-r", "a.run"),
        ("'GP'", "AMBS, EVO, PPO, RAN"),
    ),
    Case((*HPS[:3], "--max-evals", "0", "-p", "a.P", "-r", "a.run"), ("'--max-evals'", "0 is not allowed")),
    # changing jobs
    Case(("modify", "nosuch", "--retries", "1"), ("'nosuch'", "nas-hpc ls jobs")),
    Case(("modify", "ready"), ("nothing to change", "at least one flag")),
    Case(
        ("modify", "ready", "--parents", "CHILD"),
        ("cycle: ready (", ") <- child (", ") <- ready (", "wait for itself"),
        name="cycle",
    ),
    Case(("modify", "ready", "--post-error-handler"), ("no postprocess command", "--postprocess")),
    Case(
        ("modify", "ready", "--retries", "1"),
        ("is RUNNING", "nas-hpc kill"),
        prepare=claim,
        name="modify running",
    ),
    Case(("kill",), ("nothing to do", "--workflow NAME"), name="kill nothing"),
    Case(("kill", "nosuch"), ("'nosuch'",)),
    Case(("kill", "twin"), ("2 jobs have that name", "give the id")),
    Case(("kill", "--workflow", "W"), ("no terminal", "--yes"), name="kill a workflow unasked"),
    Case(("retry", "ready"), ("is READY", "FAILED or USER_KILLED")),
    Case(("retry",), ("--failed",), name="retry nothing"),
    Case(("rm", "ready"), ("remove 1 job and", "--yes")),
    Case(("rm", "ready", "--yes"), ("is RUNNING", "nas-hpc kill"), prepare=claim, name="rm running"),
    Case(("rm", "--workflow", "none", "--yes"), ("'none'", "nas-hpc ls jobs")),
    # looking
    Case(("ls", "jobs", "--state", "DONE"), ("'DONE' is no state", "JOB_FINISHED")),
    Case(("ls", "jobs", "--limit", "0"), ("'--limit'", "0 is not allowed")),
    Case(("ls", "jobs", "--id", "ffffffff"), ("ffffffff",)),
    Case(("log", "nosuch"), ("'nosuch'",)),
    Case(("why", "nosuch"), ("'nosuch'",)),
    Case(("watch",), ("no launcher is running", "nas-hpc launcher"), code=1),
    Case(("ls", "nodes"), ("no launcher is running",), code=1),
    Case(("report", "nosuch"), ("'nosuch'", "nas-hpc ls jobs")),
    # launchers
    Case(("launcher", "--job-mode", "cereal"), ("'cereal'", "'mpi', 'serial'")),
    Case(("launcher", "--time-limit-minutes", "-5"), ("-5", "above 0")),
    Case(("launcher", "--nodes", "0"), ("'--nodes'", "0 is not allowed")),
    Case(("launcher", "--idle-timeout", "-1"), ("'--idle-timeout'", "0 or more")),
    Case(("launcher", "--agents", "4"), ("--agents", "serial mode", "--job-mode serial")),
    Case(("launcher", "--agents", "-1"), ("'--agents'", "-1 is not allowed")),
    Case(("launcher", "--use-master-node"), ("--use-master-node", "--job-mode serial")),
    Case(("launcher", "--agent-start", "pairs"), ("'pairs'", "'ensemble', 'per_node'")),
    Case(("launcher", "--consume-all", "--wf-filter", "W"), ("do not go together",)),
    Case(("launcher", "--wf-filter", "nosuch"), ("'nosuch'", "W")),
    Case(
        ("launcher",),
        ("is already run by a launcher", str(os.getpid())),
        prepare=run_elsewhere,
        name="already run",
    ),
]


# -- the test ----------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No terminal to ask, and the environment as it was at the end."""
    environment = dict(os.environ)
    with Path("/dev/null").open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        yield
    os.environ.clear()
    os.environ.update(environment)


def dump(site: Site) -> str:
    """All that the database holds; what it is made of where it is none."""
    try:
        with closing(sqlite3.connect(f"file:{site.database}?mode=ro", uri=True)) as database:
            return "\n".join(database.iterdump())
    except sqlite3.Error:
        return site.database.read_bytes().hex() if site.database.is_file() else "no database"


def child_id(site: Site) -> str:
    with open_database(site) as store:
        return find_job(store, "child").id


def marks(case: Case) -> list[pytest.MarkDecorator]:
    """Slow are those that start the user's Python with his modules, but for one of them."""
    loads = any(word.startswith(("mine.", "leaves.")) for word in case.argv)
    return [pytest.mark.slow] if loads and "mine.two" not in case.argv else []


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=marks(case)) for case in CASES], ids=lambda case: case.label
)
def test_a_wrong_call_is_refused_in_one_clear_line_and_changes_nothing(
    case: Case, full_site: Site, nas_hpc: Run
) -> None:
    argv = tuple(child_id(full_site) if word == "CHILD" else word for word in case.argv)
    case.prepare(full_site)
    before = dump(full_site)
    called = nas_hpc(*argv)
    assert called.code == case.code, called
    assert dump(full_site) == before
    assert "Traceback" not in called.err + called.out
    for part in case.said:
        assert part in called.err, called
    [line] = called.err.splitlines()
    assert line.startswith("nas-hpc: error: ")


def test_there_are_at_least_sixty_wrong_calls() -> None:
    assert len(CASES) >= 60


def test_a_job_that_needs_more_nodes_than_there_are_is_named_by_the_launcher_and_waits(
    full_site: Site, nas_hpc: Run
) -> None:
    assert nas_hpc("job", "--name", "big", "--workflow", "B", "--app", "echo", "--num-nodes", "4").code == 0
    before = nas_hpc("ls", "jobs", "--json").out
    called = nas_hpc("launcher", "--wf-filter", "B", "--job-mode", "serial")
    assert called.code == 1, called
    assert "Traceback" not in called.err + called.out
    told = [line for line in (called.out + called.err).splitlines() if "big" in line]
    assert len(told) == 1
    assert "4 nodes" in told[0]
    assert nas_hpc("ls", "jobs", "--json").out == before
