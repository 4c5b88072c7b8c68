"""Programs that add, look at and end jobs, under real launchers, some of which are killed."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nas_hpc import jobs
from nas_hpc.errors import ConfigError, LauncherGone, WrongCall
from tests.launcher.bench import Bench
from tests.support import TEST_ID, processes_of, wait_until, words_of

LEAF = """
import os, sys
from nas_hpc import jobs
here = jobs.current()
with open(LEDGER, "a") as file:
    file.write(f"{here.name} {here.data.get('what')} {[p.name for p in here.parents]}\\n")
jobs.update_data(objective=float(len(here.name)))
"""
MAKER = """
import os, time
from nas_hpc import jobs
here = jobs.current()
mark = {"NAS_HPC_TEST_ID": os.environ["NAS_HPC_TEST_ID"]}
first = jobs.add(name="left", application="LEAF", environ=mark, data={"what": "a"}, node_packing_count=4)
if here.attempt == 1:
    print("half", flush=True)
    PAUSE
jobs.add(name="right", application="LEAF", environ=mark, data={"what": "b"}, node_packing_count=4,
         parents=[first])
print("all", [child.name for child in jobs.children()], flush=True)
"""


def leaf(bench: Bench) -> Path:
    """The application LEAF; the ledger of what ran."""
    ledger = bench.directory / "ledger"
    bench.script("LEAF", LEAF.replace("LEDGER", repr(str(ledger))))
    return ledger


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["the launcher is killed", "the program is killed", "the launcher is stopped"]
)
def test_a_job_that_adds_two_and_is_started_again_adds_them_once(bench: Bench, how: str) -> None:
    ledger = leaf(bench)
    bench.script("MAKER", MAKER.replace("PAUSE", "time.sleep(600)"))
    bench.job("maker", "MAKER", "--retries", "1", "--node-packing-count", "4")
    launcher = bench.start("--job-mode", "serial")
    wait_until(lambda: ledger.exists() and "half" in bench.output("maker"), 60, "the first child")
    wait_until(lambda: bench.state("left") == "JOB_FINISHED", 60, "its end")
    if how == "the program is killed":
        script = str(bench.directory / "maker.py")
        [program] = [process for process in processes_of(bench.test_id) if script in words_of(process)]
        program.kill()
        assert launcher.wait(60) == 0, launcher.communicate()
    else:
        launcher.send_signal(signal.SIGKILL if "killed" in how else signal.SIGTERM)
        launcher.wait(60)
        bench.launch("--job-mode", "serial")
    launcher.communicate()
    assert ledger.read_text().splitlines() == ["left a []", "right b ['left']"]
    listed = json.loads(bench.nas("ls", "jobs", "--workflow", "W", "--json"))
    assert sorted(job["name"] for job in listed) == ["left", "maker", "right"]
    assert {job["state"] for job in listed} == {"JOB_FINISHED"}
    assert "all ['left', 'right']" in bench.output("maker")
    assert [line["number"] for line in bench.attempts() if line["name"] == "maker"] == [1, 2]
    objectives = {line["name"]: line["objective"] for line in bench.attempts() if line["outcome"] == "ok"}
    assert objectives == {"left": 4.0, "right": 5.0, "maker": None}, "a person's job may have one, too"


@pytest.mark.slow
def test_scripts_before_and_after_a_program_may_add_jobs(bench: Bench) -> None:
    ledger = leaf(bench)
    script = bench.directory / "script.py"
    script.write_text("""
import os, sys
from nas_hpc import jobs
mark = {"NAS_HPC_TEST_ID": os.environ["NAS_HPC_TEST_ID"]}
jobs.add(name=sys.argv[1], application="LEAF", environ=mark, data={"what": jobs.current().name},
         parents=[jobs.current().id], node_packing_count=4)
""")
    bench.script("NOTHING", "")
    around = [f"--{stage}process={sys.executable} {script} {stage}" for stage in ("pre", "post")]
    bench.job("whole", "NOTHING", *around, "--node-packing-count", "4")
    bench.launch("--job-mode", "serial")
    assert sorted(ledger.read_text().splitlines()) == ["post whole ['whole']", "pre whole ['whole']"]


@pytest.mark.slow
def test_a_program_ends_the_jobs_that_it_does_not_need_any_more(bench: Bench) -> None:
    bench.script("LONG", "import time; print('running', flush=True); time.sleep(600)")
    code = """
import os, time
from nas_hpc import jobs
mark = {"NAS_HPC_TEST_ID": os.environ["NAS_HPC_TEST_ID"]}
ids = [jobs.add(name=f"long{i}", application="LONG", environ=mark, node_packing_count=4) for i in range(2)]
while {child.state for child in jobs.children()} != {"RUNNING"}:
    time.sleep(0.05)
waiting = jobs.add(name="after", application="LONG", parents=ids)
jobs.kill([*ids, waiting])
print({child.name: child.state for child in jobs.children()}, flush=True)
"""
    bench.script("MAKER", code)
    bench.job("maker", "MAKER", "--node-packing-count", "4")
    bench.launch("--job-mode", "serial")
    assert bench.output("maker").strip() == str(dict.fromkeys(["long0", "long1", "after"], "USER_KILLED"))
    assert bench.state("maker") == "JOB_FINISHED"


@pytest.mark.slow
def test_an_evaluation_of_a_search_may_add_jobs_from_the_node_of_an_agent(bench: Bench) -> None:
    """The run function is called by an agent, a process of its own, and the child runs there, too."""
    ledger = leaf(bench)
    module = f"""
from nas_hpc import jobs
from nas_hpc.problem import HpProblem
Problem = HpProblem()
Problem.add_dim("x", (0, 3))
def run(config):
    mark = {{{TEST_ID!r}: {bench.test_id!r}}}
    jobs.add(name=f"leaf{{config['x']}}", application="LEAF", environ=mark, data={{"what": config["x"]}},
             key=f"for {{config['x']}}", node_packing_count=4)
    return config["x"]
"""
    (bench.directory / "mine.py").write_text(module)
    bench.searches()
    bench.job("s", "RAN", args="--problem mine.Problem --run mine.run --max-evals 3 --seed 2")
    bench.launch("--job-mode", "serial", "--nodes", "3", "--agents", "1")
    names = {line.split()[0] for line in ledger.read_text().splitlines()}
    assert len(names) == len(ledger.read_text().splitlines()) == 3
    assert all(bench.state(name) == "JOB_FINISHED" for name in names)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": "a/b", "application": "A"}, "jobs.add: the name 'a/b' has a slash"),
    ({"name": 3, "application": "A"}, "the name 3 is no text"),
    ({"name": "a", "application": "A", "workflow": "-x"}, "the workflow '-x' begins with '-'"),
    ({"name": "a", "application": ""}, "jobs.add: there is neither an application"),
    ({"name": "a", "application": "A", "num_nodes": 0}, "jobs.add: num_nodes is 0"),
    ({"name": "a", "application": "A", "environ": {"A": 1}}, "jobs.add: environ has 'A' = 1"),
    ({"name": "a", "application": "A", "data": {"x": object()}}, "jobs.add: data, 'x'"),
    ({"name": "a", "application": "A", "parents": "f" * 32}, "parents is 'ffff"),
    ({"name": "a", "application": "A", "parents": ["abc"]}, "parents has 'abc'"),
    ({"name": "a", "application": "A", "parents": [None]}, "parents has None"),
    ({"name": "a", "application": "A", "args": "'"}, "cannot be split"),
    ({"name": "a", "application": "A", "key": "\udcff"}, "no valid text"),
]


@pytest.mark.parametrize(("fields", "said"), BAD)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongCall) as refused:
        jobs.add(**fields)
    assert said in refused.value.message
    assert "\n" not in refused.value.message


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inside a job whose launcher is gone: where its endpoint would be."""
    endpoint = tmp_path / "endpoint.json"
    for name, value in {"ENDPOINT": str(endpoint), "JOB_ID": "a" * 32, "ATTEMPT": "1"}.items():
        monkeypatch.setenv(f"NAS_HPC_{name}", value)
    return endpoint


def test_without_a_launcher_the_wait_ends_and_says_for_whom(
    nobody: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAS_HPC_RECONNECT_S", "0.3")
    begun = time.monotonic()
    with pytest.raises(LauncherGone, match=f"no launcher answered for 0.3 s .endpoint {nobody}"):
        jobs.add(name="a", application="A")
    assert time.monotonic() - begun >= 0.3
    monkeypatch.setenv("NAS_HPC_RECONNECT_S", "soon")
    with pytest.raises(ConfigError, match="NAS_HPC_RECONNECT_S='soon'"):
        jobs.children()


def test_two_jobs_of_one_name_need_keys(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_HPC_RECONNECT_S", "0.1")
    for args, error in (("1", LauncherGone), ("1", LauncherGone), ("2", WrongCall)):
        with pytest.raises(
            error, match="a name or a key of its own" if error is WrongCall else "no launcher"
        ):
            jobs.add(name="twin", application="A", args=args)
    with pytest.raises(LauncherGone):
        jobs.add(name="twin", application="A", args="2", key="second")


def test_nothing_to_kill_asks_nobody() -> None:
    jobs.kill([])


@pytest.mark.slow
def test_a_request_outlives_its_launcher(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program on another node waits for the next launcher, which knows its job still."""
    bench.script("HOLD", "import os, time; print(os.environ['NAS_HPC_JOB_ID'], flush=True); time.sleep(600)")
    leaf(bench)
    bench.job("hold", "HOLD", "--node-packing-count", "4")
    launcher = bench.start("--job-mode", "serial")
    wait_until(lambda: any(bench.site.glob("data/W/hold_*/hold.out")) and bench.output("hold"), 60, "the job")
    identifier = bench.output("hold").strip()
    endpoint = bench.site / "run" / "endpoint.json"
    for name, value in {"ENDPOINT": str(endpoint), "JOB_ID": identifier, "ATTEMPT": "2"}.items():
        monkeypatch.setenv(f"NAS_HPC_{name}", value)
    monkeypatch.setenv("NAS_HPC_SITE", str(bench.site))
    with pytest.raises(WrongCall, match="attempt 2 of job hold .* is over"):
        jobs.children()
    launcher.send_signal(signal.SIGSTOP)
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.append(_try_children()))
    thread.start()
    launcher.kill()
    launcher.communicate()
    second = bench.start("--job-mode", "serial")
    thread.join(60)
    assert told == [[]], "the restarted attempt is number 2"
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=60)


def _try_children() -> Any:
    """Until the attempt that we are has been started."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return jobs.children()
        except WrongCall as error:
            if time.monotonic() > deadline:
                return str(error)
            time.sleep(0.05)
