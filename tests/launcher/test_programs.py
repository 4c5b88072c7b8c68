"""External programs under a real launcher: what they get, how they end, what follows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.launcher.bench import REPOSITORY, Bench
from tests.support import processes_of, wait_until

SHOW = """
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "environ": dict(os.environ), "path": sys.path, "cwd": os.getcwd(),
                  "python": sys.executable, "stdin": os.readlink("/proc/self/fd/0")}))
"""
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("running", flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_job_gets_its_submitters_place_and_environment_back_under_env_i(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SETTING", "kept")
    monkeypatch.setenv("MY_API_KEY", "not to be seen")
    monkeypatch.setenv("SLURM_STEP_ID", "7")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    job = bench.job("show", bench.script("SHOW", SHOW), "--env", "ADDED=1", args="'two words' --flag=3")
    launcher = bench.start(environ={"PYTHONPATH": str(REPOSITORY)})
    assert launcher.wait(60) == 0
    seen = json.loads(bench.output("show"))
    environ = seen["environ"]
    assert seen["argv"] == ["two words", "--flag=3"]
    assert seen["cwd"] == str(bench.directory_of("show"))
    assert seen["stdin"] == "/dev/null"
    assert seen["python"] == sys.executable
    assert str(bench.directory) in seen["path"]
    assert str(REPOSITORY) in seen["path"]
    assert environ["MY_SETTING"] == "kept"
    assert environ["ADDED"] == "1"
    assert environ["PATH"] == os.environ["PATH"]
    assert environ["BALSAM_JOB_ID"] == environ["NAS_HPC_JOB_ID"] == job
    assert environ["BALSAM_JOB_MODE"] == "mpi"
    assert "MY_API_KEY" not in environ
    assert not [name for name in environ if name.startswith(("SLURM", "PMI_"))]
    everything = b"".join(p.read_bytes() for p in bench.site.rglob("*") if p.is_file())
    assert b"not to be seen" not in everything


def test_states_are_recorded_and_result_and_job_files_written(bench: Bench) -> None:
    bench.job("show", bench.script("SHOW", SHOW))
    bench.launch()
    assert bench.states("show") == ["CREATED", "READY", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
    directory = bench.directory_of("show")
    assert sorted(path.name for path in directory.iterdir()) == ["job.json", "result.json", "show.out"]
    result = json.loads((directory / "result.json").read_text())
    assert (result["outcome"], result["attempt"], result["return_code"]) == ("ok", 1, 0)
    line = bench.attempts()[0]
    assert line["start"] <= line["end"]
    assert line["job"] == result["job"]


@pytest.mark.slow
def test_a_failing_program_is_retried_as_asked_and_then_failed(bench: Bench) -> None:
    flaky = bench.script(
        "FLAKY",
        "import os, pathlib, sys\n"
        "tries = pathlib.Path('tries'); n = len(tries.read_text()) if tries.exists() else 0\n"
        "tries.write_text('x' * (n + 1)); print('try', n)\n"
        "sys.exit(0 if n >= int(sys.argv[1]) else 3)\n",
    )
    bench.job("twice", flaky, "--retries", "2", args="2")
    bench.job("never", flaky, "--retries", "1", args="9")
    log = bench.launch(code=1)
    assert bench.state("twice") == "JOB_FINISHED"
    assert bench.output("twice").split() == ["try", "0", "try", "1", "try", "2"]
    assert bench.state("never") == "FAILED"
    assert "never" in log
    assert "exit code 3" in log
    assert [a["outcome"] for a in bench.attempts() if a["name"] == "never"] == ["error", "error"]
    bench.nas("retry", "--failed")
    assert bench.state("never") == "RESTART_READY"


@pytest.mark.slow
def test_a_program_that_ignores_sigterm_is_killed_with_its_children_when_its_time_is_over(
    bench: Bench,
) -> None:
    bench.job("stubborn", bench.script("STUBBORN", STUBBORN), "--timeout", "1")
    log = bench.launch(code=1)
    assert bench.state("stubborn") == "FAILED"
    assert bench.attempts()[0]["outcome"] == "timeout"
    assert "1 s" in log or "1.0 s" in log
    assert not processes_of(bench.test_id)


def test_kill_ends_a_running_job_at_once_and_the_launcher_goes_on(bench: Bench) -> None:
    sleep = bench.script("SLEEP", "import time; print('running', flush=True); time.sleep(600)")
    bench.job("long", sleep)
    bench.job("next", bench.script("SHOW", SHOW))
    launcher = bench.start()
    wait_until(lambda: list(bench.site.glob("data/W/long_*/long.out")), 60, "the job to start")
    assert "running on" in bench.nas("why", bench.listing("long")["id"])
    bench.nas("kill", bench.listing("long")["id"], "--yes")
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, output
    assert bench.state("long") == "USER_KILLED"
    assert bench.state("next") == "JOB_FINISHED"
    assert bench.attempts()[0]["outcome"] == "killed"


@pytest.mark.slow
def test_the_end_of_the_allocation_costs_a_job_nothing(bench: Bench) -> None:
    nap = bench.script(
        "NAP",
        "import os, time\nif os.environ['NAS_HPC_ATTEMPT'] == '1': time.sleep(600)\n",
    )
    bench.job("nap", nap)
    log = bench.launch("--time-limit-minutes", "0.3")
    assert "the allocation ends" in log
    assert bench.states("nap")[-3:] == ["RUNNING", "RUN_TIMEOUT", "RESTART_READY"]
    bench.launch()
    assert bench.state("nap") == "JOB_FINISHED"
    assert [a["outcome"] for a in bench.attempts()] == ["walltime", "ok"]


@pytest.mark.slow
def test_children_run_after_their_parents_and_fail_with_them(bench: Bench) -> None:
    order = bench.script(
        "ORDER",
        f"import sys; open({str(bench.directory / 'order')!r}, 'a').write(sys.argv[1]); "
        "sys.exit(sys.argv[1] == 'x')",
    )
    first = bench.job("a", order, args="a")
    second = bench.job("b", order, "--parents", first, args="b")
    bench.job("c", order, "--parents", f"{first},{second}", args="c")
    bad = bench.job("x", order, args="x")
    bench.job("y", order, "--parents", bad, args="y")
    assert bench.state("c") == "AWAITING_PARENTS"
    bench.launch(code=1)
    ran = (bench.directory / "order").read_text()
    assert [letter for letter in ran if letter in "abc"] == ["a", "b", "c"]
    assert "y" not in ran
    assert bench.state("y") == "FAILED"


@pytest.mark.slow
def test_sigterm_stops_a_launcher_in_order_and_the_job_is_ready_to_restart(bench: Bench) -> None:
    bench.job("long", bench.script("SLEEP", "import time; print('running', flush=True); time.sleep(600)"))
    launcher = bench.start()
    wait_until(lambda: list(bench.site.glob("data/W/long_*/long.out")), 60, "the job to start")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    assert bench.state("long") == "RESTART_READY"
    assert not (bench.site / "run" / "endpoint.json").exists()


def test_what_a_stranger_ends_by_sigterm_runs_again_and_only_so_often(bench: Bench) -> None:
    """A batch system ends the processes of a job one by one; the launcher may hear of its own end last."""
    once = "import os; was = os.path.exists('was'); open('was', 'w').close(); was or os.kill(os.getpid(), 15)"
    bench.job("once", bench.script("ONCE", once))
    bench.job("always", bench.script("ALWAYS", "import os; os.kill(os.getpid(), 15)"))
    log = bench.launch(code=1)
    assert bench.state("once") == "JOB_FINISHED"
    assert bench.state("always") == "FAILED"
    assert "killed by signal 15 (SIGTERM) (attempt 3, on " in log


@pytest.mark.slow
def test_a_job_of_more_than_one_rank_is_named_and_the_rest_goes_on(bench: Bench) -> None:
    show = bench.script("SHOW", SHOW)
    bench.job("one", show)
    two = bench.job("two", show, "--ranks-per-node", "2")
    log = bench.launch("--mpi", "none", code=1)
    assert (
        "it has 1 node x 2 ranks, which need an MPI program, and there is none: the setting mpi is none"
        in log
    )
    assert bench.state("one") == "JOB_FINISHED"
    assert bench.state("two") == "READY"
    assert "READY" in bench.nas("why", two)


def test_the_endpoint_is_closed_to_strangers_and_listens_on_loopback_alone(bench: Bench) -> None:
    bench.job("long", bench.script("SLEEP", "import time; print('running', flush=True); time.sleep(600)"))
    launcher = bench.start()
    wait_until(lambda: list(bench.site.glob("data/W/long_*/long.out")), 60, "the job to start")
    file = bench.site / "run" / "endpoint.json"
    assert file.stat().st_mode & 0o777 == 0o600
    endpoint = json.loads(file.read_text())
    listening = [c.laddr.ip for c in psutil.Process(launcher.pid).net_connections() if c.status == "LISTEN"]
    assert listening == ["127.0.0.1"]
    secrets = [endpoint[name].encode() for name in ("server_public", "client_public", "client_secret")]
    told = [Path(f"/proc/{process.pid}/{name}") for process in processes_of(bench.test_id)
            for name in ("environ", "cmdline")]  # fmt: skip
    assert told
    for path in (*told, *(path for path in bench.site.rglob("*") if path.is_file() and path != file)):
        with contextlib.suppress(FileNotFoundError):  # a process that ended, a temporary file
            seen = path.read_bytes()
            assert not any(secret in seen for secret in secrets)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0


# -- inside a batch job -----------------------------------------------------------------------------------
@pytest.mark.slow
def test_in_a_batch_job_of_other_hosts_nothing_is_run_here_by_mistake(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.job("show", bench.script("SHOW", SHOW))
    environ = {"PYTHONPATH": str(REPOSITORY), "SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "node[1-3]",
               "SLURM_JOB_END_TIME": str(int(time.time()) + 600), "NAS_HPC_MPI": "none"}  # fmt: skip
    launcher = bench.start(environ=environ)
    output, _ = launcher.communicate(timeout=60)
    assert "it has slurm job 5: 3 nodes node[1-3]" in output
    assert bench.states("show")[-1] == "READY", output
    assert not list(bench.site.glob("data/W/show_*/show.out"))


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        pytest.param(
            {"PBS_JOBID": "4.x", "PBS_NODEFILE": "/no/such"},
            "PBS_NODEFILE /no/such cannot be read",
            marks=pytest.mark.slow,
        ),
        ({"COBALT_JOBID": "7", "COBALT_PARTNAME": "1-4", "COBALT_JOBSIZE": "5"}, "they must agree"),
        pytest.param(
            {"COBALT_JOBID": "7", "COBALT_PARTNAME": "1", "COBALT_ENDTIME": "1600000000"},
            "cobalt job 7 ended",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[1"},
            "a bracket is not closed",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_batch_jobs_variables_that_make_no_sense_are_refused_in_one_line(
    bench: Bench, variables: dict[str, str], said: str
) -> None:
    launcher = bench.start(environ={"PYTHONPATH": str(REPOSITORY), **variables})
    output, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 2
    [line] = [line for line in output.splitlines() if "error" in line]
    assert said in line
