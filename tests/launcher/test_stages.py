"""What is done around a job's program, under a real launcher, by the states that are recorded."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.launcher.scripts import Script
from nas_hpc.records import Job, new_id
from nas_hpc.site import Site
from nas_hpc.states import Actor, State, is_path
from nas_hpc.store import open_store
from tests.launcher.bench import Bench
from tests.support import processes_of, wait_until

TOLD = """
import json, os, sys
names = ("BALSAM_JOB_ID", "BALSAM_JOB_STATE", "BALSAM_JOB_ERROR", "BALSAM_JOB_TIMEOUT", "BALSAM_PARENT_IDS",
         "NAS_HPC_JOB_DIR", "NAS_HPC_ATTEMPT", "MINE")
print(json.dumps({"argv": sys.argv[1:], "cwd": os.getcwd(), "files": sorted(os.listdir()),
                  "stdin": os.readlink("/proc/self/fd/0"), **{name: os.environ.get(name) for name in names}}))
"""
WAIT = """
import os, sys, time
print("begun", flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
"""
SETTLED = ["PREPROCESSED", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]


def program(bench: Bench, name: str, text: str) -> str:
    """A Python program that is no application; the command that runs it."""
    path = bench.directory / f"{name}.py"
    path.write_text(text)
    return f"{sys.executable} {path}"


def states(bench: Bench, name: str) -> list[str]:
    """The recorded states from READY on, which are a path of the table."""
    found = bench.states(name)
    assert is_path([State(state) for state in found])
    return found[found.index("READY") :]


def output(bench: Bench, name: str, stage: str) -> str:
    return (bench.directory_of(name) / f"{stage}.out").read_text()


def history(bench: Bench, name: str) -> list[str]:
    """The messages of a job's events."""
    found = json.loads(bench.nas("ls", "jobs", "--name", name, "--history", "--json"))[0]["history"]
    return [event["message"] for event in found]


def children_of(bench: Bench) -> list[int]:
    return [process.pid for process in processes_of(bench.test_id)]


def commands_of(bench: Bench) -> list[bytes]:
    """Command lines of the test's processes."""
    found = []
    for pid in children_of(bench):
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def wait_for(bench: Bench, name: str, stage: str) -> None:
    """Until the program or script has printed something."""
    wait_until(
        lambda: any(path.read_text() for path in bench.site.glob(f"data/W/{name}_*/{stage}.out")),
        60,
        f"output of {stage} of {name}",
    )


class TestScripts:
    @pytest.mark.slow
    def test_they_run_before_and_after_the_program_in_its_directory_with_its_environment(
        self, bench: Bench
    ) -> None:
        told = program(bench, "told", TOLD)
        bench.nas(
            "app", "--name", "A", "--exec", told, "--preprocess", f"{told} 'before it'", "--postprocess", told
        )
        job = bench.job("j", "A", "--env", "MINE=1")
        bench.launch()
        assert states(bench, "j") == ["READY", *SETTLED]
        directory = bench.directory_of("j")
        before, after = (json.loads(output(bench, "j", stage)) for stage in ("preprocess", "postprocess"))
        assert before["argv"] == ["before it"]
        assert before["files"] == ["job.json", "preprocess.out"]
        assert (before["BALSAM_JOB_STATE"], after["BALSAM_JOB_STATE"]) == ("READY", "RUN_DONE")
        assert (before["NAS_HPC_ATTEMPT"], after["NAS_HPC_ATTEMPT"]) == ("0", "1")
        for seen in (before, after):
            assert seen["cwd"] == seen["NAS_HPC_JOB_DIR"] == str(directory)
            assert (seen["BALSAM_JOB_ID"], seen["MINE"], seen["stdin"]) == (job, "1", "/dev/null")
            assert (seen["BALSAM_JOB_ERROR"], seen["BALSAM_JOB_TIMEOUT"]) == ("FALSE", "FALSE")
            assert seen["BALSAM_PARENT_IDS"] == "[]"
        assert "result.json" in after["files"]
        assert [line["outcome"] for line in bench.attempts()] == ["ok"]

    @pytest.mark.slow
    def test_a_jobs_own_scripts_go_instead_of_the_applications_and_an_empty_one_means_none(
        self, bench: Bench
    ) -> None:
        said = program(bench, "said", "import sys; print(sys.argv[1])")
        bench.nas(
            "app", "--name", "A", "--exec", said + " x",
            "--preprocess", f"{said} app", "--postprocess", f"{said} app",
        )  # fmt: skip
        bench.job("own", "A", "--preprocess", f"{said} job", "--postprocess", "")
        bench.job("none", "A", "--preprocess", "")
        bench.launch()
        assert states(bench, "own") == ["READY", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
        assert output(bench, "own", "preprocess") == "job\n"
        assert states(bench, "none") == ["READY", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]
        assert output(bench, "none", "postprocess") == "app\n"

    @pytest.mark.slow
    def test_a_failing_preprocess_fails_the_job_and_its_children_and_runs_again_when_that_is_retried(
        self, bench: Bench
    ) -> None:
        pre = program(
            bench, "pre",
            "import os, sys\nif not os.path.exists('../ok'):\n    print('no mesh'); sys.exit(3)\n",
        )  # fmt: skip
        ok = bench.script("OK", "print('done')")
        job = bench.job("j", ok, "--preprocess", pre)
        bench.job("child", ok, "--parents", job)
        log = bench.launch(code=1)
        assert states(bench, "j") == ["READY", "FAILED"]
        assert bench.states("child") == ["CREATED", "AWAITING_PARENTS", "FAILED"]
        assert history(bench, "j")[-1] == "preprocess: exit code 3: no mesh"
        assert "failed: preprocess: exit code 3: no mesh" in log
        why = bench.nas("why", "j")
        assert "preprocess: exit code 3" in why
        assert "| no mesh" in why
        assert "nas-hpc retry" in why
        (bench.directory_of("j").parent / "ok").touch()
        assert "W/child" in bench.nas("retry", job)
        bench.launch()
        assert states(bench, "j") == [
            "READY", "FAILED", "RESTART_READY", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED",
        ]  # fmt: skip
        assert bench.states("child")[-4:] == ["PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]

    @pytest.mark.slow
    def test_a_failing_postprocess_fails_the_job_though_its_program_was_right(self, bench: Bench) -> None:
        ok = bench.script("OK", "print('done')")
        post = program(bench, "post", "raise ValueError('no figure')")
        job = bench.job("j", ok, "--postprocess", post)
        bench.job("child", ok, "--parents", job, "--on-parent-failure", "wait")
        log = bench.launch(code=1)
        assert states(bench, "j") == ["READY", "RUNNING", "RUN_DONE", "FAILED"]
        assert bench.state("child") == "AWAITING_PARENTS"
        assert "postprocess: exit code 1: ValueError: no figure" in log
        assert "| ValueError: no figure" in bench.nas("why", "j")
        assert [line["outcome"] for line in bench.attempts()] == ["ok"]

    @pytest.mark.slow
    def test_a_script_that_cannot_be_started_is_named(self, bench: Bench) -> None:
        ok = bench.script("OK", "print('done')")
        gone = bench.directory / "gone.sh"
        gone.write_text("#!/bin/sh\n")
        gone.chmod(0o755)
        bench.job("j", ok, "--preprocess", str(gone))
        gone.unlink()
        log = bench.launch(code=1)
        assert states(bench, "j") == ["READY", "FAILED"]
        assert f"preprocess: cannot start {gone}: No such file" in log

    @pytest.mark.slow
    def test_it_is_not_run_again_before_a_later_attempt(self, bench: Bench) -> None:
        flaky = bench.script(
            "FLAKY", "import os, sys\nif not os.path.exists('x'):\n    open('x', 'w').close(); sys.exit(1)\n"
        )
        said = program(bench, "said", "print('said')")
        bench.job("j", flaky, "--preprocess", said, "--postprocess", said, "--retries", "1")
        bench.launch()
        assert states(bench, "j") == [
            "READY", "PREPROCESSED", "RUNNING", "RUN_ERROR", "RESTART_READY",
            "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED",
        ]  # fmt: skip
        assert output(bench, "j", "preprocess") == output(bench, "j", "postprocess") == "said\n"

    @pytest.mark.slow
    def test_many_run_at_a_time_and_what_they_leave_behind_is_ended(self, bench: Bench) -> None:
        stay = program(
            bench, "stay",
            "import subprocess, sys\n"
            "nap = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
            "subprocess.Popen(nap)\nsubprocess.Popen(nap, start_new_session=True)\nprint('gone')\n",
        )  # fmt: skip
        ok = bench.script("OK", "print('done')")
        names = [f"j{number}" for number in range(12)]
        for name in names:
            bench.job(name, ok, "--preprocess", stay)
        bench.launch("--job-mode", "serial", "--nodes", "2")
        for name in names:
            assert states(bench, name) == ["READY", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
        assert not children_of(bench)

    @pytest.mark.slow
    def test_a_script_that_ignores_its_end_is_killed_after_the_grace(self, bench: Bench) -> None:
        directory = bench.directory
        log = directory / "sessions.log"
        environ = {"NAS_HPC_JOB_ID": "f" * 32, "NAS_HPC_ATTEMPT": "0", "NAS_HPC_LAUNCHER_ID": "lease"}
        deaf = program(
            bench, "deaf",
            "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('deaf', flush=True)\ntime.sleep(600)\n",
        )  # fmt: skip
        script = Script("preprocess", tuple(deaf.split()), {**os.environ, **environ}, directory, log)

        printed = directory / "preprocess.out"

        def end() -> None:
            wait_until(lambda: printed.exists() and printed.read_text(), 60, "its first line")
            script.stop("ran longer than 1 s")
            threading.Timer(0.2, script.kill).start()

        threading.Thread(target=end).start()
        assert script.run(lambda: None) == "preprocess: ran longer than 1 s: deaf"
        assert "script" in log.read_text()

    @pytest.mark.slow
    def test_program_and_scripts_have_the_environment_scripts_variables(self, bench: Bench) -> None:
        told = program(bench, "told", TOLD)
        (bench.directory / "env.sh").write_text('export MINE="of $NAS_HPC_ATTEMPT"\n')
        scripts = ("--preprocess", f"{told} 'a  b' '$HOME'", "--postprocess", told)
        bench.nas("app", "--name", "A", "--exec", told, *scripts, "--environment-script", "env.sh")
        bench.job("j", "A")
        bench.launch()
        said = [json.loads(output(bench, "j", stage)) for stage in ("preprocess", "j", "postprocess")]
        assert [one["MINE"] for one in said] == ["of 0", "of 1", "of 1"]
        assert said[0]["argv"] == ["a  b", "$HOME"]

    @pytest.mark.slow
    def test_scripts_may_add_jobs_as_the_program_may(self, bench: Bench) -> None:
        more = program(
            bench, "more", "import sys; from nas_hpc import jobs; jobs.add(sys.argv[1], application='OK')\n"
        )  # fmt: skip
        ok = bench.script("OK", "print('done')")
        bench.job("j", ok, "--preprocess", f"{more} first", "--postprocess", f"{more} second")
        bench.launch()
        assert states(bench, "j") == ["READY", *SETTLED]
        for name in ("first", "second"):
            assert states(bench, name) == ["READY", "RUNNING", "RUN_DONE", "JOB_FINISHED"]


class TestHandlers:
    POST = """
import os, sys
print(os.environ["BALSAM_JOB_STATE"], os.environ["BALSAM_JOB_ERROR"], os.environ["BALSAM_JOB_TIMEOUT"])
sys.exit(not os.path.exists("partial"))
"""
    FAIL = "import os, sys\nif 'partial' in sys.argv:\n    open('partial', 'w').close()\nsys.exit(2)\n"

    @pytest.mark.slow
    def test_one_that_succeeds_after_an_error_finishes_the_job(self, bench: Bench) -> None:
        post, fail = program(bench, "post", self.POST), bench.script("FAIL", self.FAIL)
        job = bench.job("j", fail, "--postprocess", post, "--post-error-handler", args="partial")
        bench.job("child", bench.script("OK", "print('done')"), "--parents", job, "--input-files", "")
        bench.launch()
        assert states(bench, "j") == ["READY", "RUNNING", "RUN_ERROR", "POSTPROCESSED", "JOB_FINISHED"]
        assert output(bench, "j", "postprocess") == "RUN_ERROR TRUE FALSE\n"
        assert states(bench, "child") == ["READY", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
        assert {line["name"]: line["outcome"] for line in bench.attempts()} == {"j": "error", "child": "ok"}

    @pytest.mark.slow
    def test_one_that_fails_leaves_it_to_the_retries(self, bench: Bench) -> None:
        post, fail = program(bench, "post", self.POST), bench.script("FAIL", self.FAIL)
        bench.job("j", fail, "--postprocess", post, "--post-error-handler", "--retries", "1")
        log = bench.launch(code=1)
        assert states(bench, "j") == [
            "READY", "RUNNING", "RUN_ERROR", "RESTART_READY", "RUNNING", "RUN_ERROR", "FAILED",
        ]  # fmt: skip
        assert output(bench, "j", "postprocess") == "RUN_ERROR TRUE FALSE\n" * 2
        assert "exit code 2" in log

    @pytest.mark.slow
    def test_without_the_flag_a_failure_runs_no_script(self, bench: Bench) -> None:
        post, fail = program(bench, "post", self.POST), bench.script("FAIL", self.FAIL)
        bench.job("j", fail, "--postprocess", post, "--post-timeout-handler", args="partial")
        bench.launch(code=1)
        assert states(bench, "j") == ["READY", "RUNNING", "RUN_ERROR", "FAILED"]
        assert not (bench.directory_of("j") / "postprocess.out").exists()

    @pytest.mark.slow
    def test_a_passed_time_limit_is_for_the_timeout_handler(self, bench: Bench) -> None:
        post = program(bench, "post", self.POST)
        slow = bench.directory / "slow.sh"
        slow.write_text("touch partial\nexec sleep 600\n")  # a shell has begun long before the limit
        bench.nas("app", "--name", "SLOW", "--exec", f"/bin/sh {slow}")
        bench.job("j", "SLOW", "--postprocess", post, "--post-timeout-handler", "--timeout", "3")
        bench.launch()
        assert states(bench, "j") == ["READY", "RUNNING", "RUN_ERROR", "POSTPROCESSED", "JOB_FINISHED"]
        assert output(bench, "j", "postprocess") == "RUN_ERROR FALSE TRUE\n"

    @pytest.mark.slow
    def test_the_allocations_end_is_handled_by_the_next_launcher(self, bench: Bench) -> None:
        post = program(bench, "post", self.POST)
        slow = bench.script(
            "SLOW",
            "import sys, time\nopen(sys.argv[1], 'w').close()\nprint('on', flush=True)\ntime.sleep(600)",
        )
        for name, file in (("enough", "partial"), ("little", "nothing")):
            bench.job(name, slow, "--postprocess", post, "--post-timeout-handler", args=file)
        launcher = bench.start("--job-mode", "serial", "--nodes", "3")
        for name in ("enough", "little"):
            wait_for(bench, name, name)
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=60)
        assert states(bench, "enough") == ["READY", "RUNNING", "RUN_TIMEOUT"]
        assert "RUN_TIMEOUT" in bench.nas("why", "enough")
        launcher = bench.start("--job-mode", "serial", "--nodes", "3")
        wait_until(lambda: bench.state("little") == "RUNNING", 60, "the restart")
        wait_until(lambda: bench.state("enough") == "JOB_FINISHED", 60, "the handled job's end")
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=60)
        assert states(bench, "enough") == ["READY", "RUNNING", "RUN_TIMEOUT", "POSTPROCESSED", "JOB_FINISHED"]
        assert states(bench, "little")[:5] == ["READY", "RUNNING", "RUN_TIMEOUT", "RESTART_READY", "RUNNING"]
        assert output(bench, "enough", "postprocess") == "RUN_TIMEOUT FALSE TRUE\n"


class TestDeath:
    @pytest.mark.slow
    @pytest.mark.parametrize("stage", ["preprocess", "postprocess"])
    def test_a_stage_that_the_launchers_death_cut_short_is_done_by_the_next(
        self, bench: Bench, stage: str
    ) -> None:
        flag = bench.directory / "go"
        wait = program(bench, "wait", WAIT)
        job = bench.job("j", bench.script("OK", "print('done')"), f"--{stage}", f"{wait} {flag}")
        launcher = bench.start()
        wait_for(bench, "j", stage)
        assert f"its {stage} script is running (" in bench.nas("why", job)
        launcher.kill()
        launcher.communicate(timeout=60)
        wait_until(lambda: not children_of(bench), 60, "the guardian to end the script")
        before = {"preprocess": ["READY"], "postprocess": ["READY", "RUNNING", "RUN_DONE"]}[stage]
        assert states(bench, "j") == before
        assert "no launcher is running" in bench.nas("why", job)
        flag.touch()
        bench.launch()
        expected = {"preprocess": SETTLED[:3] + SETTLED[4:], "postprocess": SETTLED[3:]}[stage]
        assert states(bench, "j") == [*before, *expected]
        assert output(bench, "j", stage) == "begun\nbegun\n"
        assert len(bench.attempts()) == 1

    @pytest.mark.slow
    def test_a_launcher_that_is_stopped_ends_its_scripts_and_leaves_them_to_the_next(
        self, bench: Bench
    ) -> None:
        flag = bench.directory / "go"
        wait = program(bench, "wait", WAIT)
        ok = bench.script("OK", "print('done')")
        bench.job("pre", ok, "--preprocess", f"{wait} {flag}")
        bench.job("post", ok, "--postprocess", f"{wait} {flag}")
        launcher = bench.start("--job-mode", "serial", "--nodes", "2")
        wait_for(bench, "pre", "preprocess")
        wait_for(bench, "post", "postprocess")
        launcher.send_signal(signal.SIGTERM)
        said, _ = launcher.communicate(timeout=60)
        assert launcher.returncode == 0, said
        assert not children_of(bench)
        assert states(bench, "pre") == ["READY"]
        assert states(bench, "post") == ["READY", "RUNNING", "RUN_DONE"]
        flag.touch()
        bench.launch("--job-mode", "serial", "--nodes", "2")
        assert bench.state("pre") == bench.state("post") == "JOB_FINISHED"

    @pytest.mark.slow
    def test_a_result_on_disk_of_a_dead_launcher_is_postprocessed_too(self, bench: Bench) -> None:
        """The program ends between the launcher's death and the next one's takeover is decided."""
        post = program(bench, "post", "print('said')")
        slow = bench.script("SLOW", "import os, signal; os.kill(int(os.environ['VICTIM']), signal.SIGSTOP)")
        launcher = bench.start("--idle-timeout", "60")
        wait_until(lambda: (bench.site / "run" / "endpoint.json").exists(), 60, "the launcher")
        job = bench.job("j", slow, "--postprocess", post, "--env", f"VICTIM={launcher.pid}")
        directory = bench.site / "data" / "W" / f"j_{job[:8]}"
        wait_until(lambda: (directory / "result.json").exists(), 60, "the keeper to write the result")
        launcher.kill()
        launcher.communicate(timeout=60)
        assert states(bench, "j") == ["READY", "RUNNING"]
        bench.launch()
        assert states(bench, "j") == ["READY", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED"]

    @pytest.mark.slow
    @pytest.mark.parametrize("stage", ["preprocess", "postprocess"])
    def test_kill_ends_a_script_and_a_retry_begins_it_again(self, bench: Bench, stage: str) -> None:
        flag = bench.directory / "go"
        wait = program(bench, "wait", WAIT)
        job = bench.job("j", bench.script("OK", "print('done')"), f"--{stage}", f"{wait} {flag}")
        launcher = bench.start("--idle-timeout", "60")
        wait_for(bench, "j", stage)
        bench.nas("kill", job)
        assert bench.state("j") == "USER_KILLED"
        wait_until(
            lambda: not any(b"wait.py" in words for words in commands_of(bench)),
            60, "the script's end",
        )  # fmt: skip
        flag.touch()
        bench.nas("retry", job)
        wait_until(lambda: bench.state("j") == "JOB_FINISHED", 60, "the retried job")
        before = {"preprocess": ["READY"], "postprocess": ["READY", "RUNNING", "RUN_DONE"]}[stage]
        after = {"preprocess": SETTLED[:3] + SETTLED[4:], "postprocess": SETTLED[1:]}[stage]
        assert states(bench, "j") == [*before, "USER_KILLED", "RESTART_READY", *after]
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=60)


class TestParents:
    @pytest.mark.slow
    def test_a_diamond_runs_in_order_and_every_state_is_recorded(self, bench: Bench) -> None:
        write = bench.script(
            "WRITE",
            "import sys; open(sys.argv[1] + '.dat', 'w').write(' '.join(sorted(__import__('os').listdir())))",
        )
        top = bench.job("top", write, args="top")
        left = bench.job("left", write, "--parents", top, args="left")
        right = bench.job("right", write, "--parents", top[:8], args="right")
        bottom = bench.job("bottom", write, "--parents", f"{left},{right}", args="bottom")
        why = bench.nas("why", bottom)
        for one in (left, right):
            assert f"({one[:8]}), which is AWAITING_PARENTS" in why
        bench.launch("--job-mode", "serial", "--nodes", "3")
        assert bench.states("top") == ["CREATED", "READY", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
        linked = ["READY", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
        for name in ("left", "right", "bottom"):
            assert bench.states(name) == ["CREATED", "AWAITING_PARENTS", *linked]
        ends = {line["name"]: (line["start"], line["end"]) for line in bench.attempts()}
        assert ends["top"][1] <= min(ends["left"][0], ends["right"][0])
        assert max(ends["left"][1], ends["right"][1]) <= ends["bottom"][0]
        seen = (bench.directory_of("bottom") / "bottom.dat").read_text().split()
        assert {"left.dat", "right.dat", "top.dat", "job.json", "bottom.out"} <= set(seen)
        assert not {"result.json"} & set(seen)

    @pytest.mark.slow
    def test_a_failed_parents_children_fare_as_their_policies_say(self, bench: Bench) -> None:
        fail = bench.script("FAIL", "import os, sys; sys.exit(not os.path.exists('../ok'))")
        ok = bench.script("OK", "print('done')")
        parent = bench.job("parent", fail)
        for policy in ("fail", "run", "wait"):
            bench.job(policy, ok, "--parents", parent, "--on-parent-failure", policy)
        bench.job("grandchild", ok, "--parents", bench.listing("fail")["id"])
        bench.launch(code=1)
        ran = ["READY", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
        assert bench.states("fail") == ["CREATED", "AWAITING_PARENTS", "FAILED"]
        assert bench.states("grandchild") == ["CREATED", "AWAITING_PARENTS", "FAILED"]
        assert bench.states("run") == ["CREATED", "AWAITING_PARENTS", *ran]
        assert bench.states("wait") == ["CREATED", "AWAITING_PARENTS"]
        assert f"its parent parent ({parent[:8]}) is FAILED" in history(bench, "fail")
        assert "which is FAILED; nas-hpc retry" in bench.nas("why", "wait")
        assert "both run again with: nas-hpc retry" in bench.nas("why", "fail")
        assert "is FAILED: it runs all the same" in bench.nas("ls", "jobs", "--name", "run", "--history")
        (bench.site / "data" / "W" / "ok").touch()
        said = bench.nas("retry", parent)
        assert [line.split()[-2] for line in said.splitlines()] == ["W/parent", "W/fail", "W/grandchild"]
        bench.launch()
        assert bench.states("fail") == ["CREATED", "AWAITING_PARENTS", "FAILED", "AWAITING_PARENTS", *ran]
        assert bench.states("wait") == ["CREATED", "AWAITING_PARENTS", *ran]
        assert bench.state("grandchild") == "JOB_FINISHED"
        assert bench.states("run") == ["CREATED", "AWAITING_PARENTS", *ran]

    @pytest.mark.slow
    def test_files_of_parents_are_linked_as_asked_and_nothing_is_overwritten(self, bench: Bench) -> None:
        write = bench.script("WRITE", "import sys\nfor n in sys.argv[2:]: open(n, 'w').write(sys.argv[1])")
        read = bench.script(
            "READ",
            "import os\nfor n in sorted(os.listdir()):\n    print(n, os.path.islink(n) and open(n).read())",
        )
        one = bench.job("one", write, args="first out.dat big.h5 notes.txt")
        two = bench.job("two", write, args="second out.dat model.h5")
        mesh = program(bench, "mesh", "open('mesh.dat', 'w').write('mine')")
        both = ("--parents", f"{one},{two}", "--preprocess", mesh)
        child = bench.job("child", read, *both, "--input-files", "*.dat  model*")
        bench.job("bare", read, *both, "--input-files", "")
        bench.job("grandchild", read, "--parents", child)
        bench.launch()
        lines = {line.split()[0]: line.split()[1] for line in bench.output("child").splitlines()}
        assert {name: text for name, text in lines.items() if text != "False"} == {
            "out.dat": "first", "out.dat_two": "second", "model.h5": "second",
        }  # fmt: skip
        assert "mesh.dat" in lines
        link = bench.directory_of("child") / "out.dat"
        assert os.readlink(link) == f"../one_{one[:8]}/out.dat"
        said = "3 files of 2 parents linked; out.dat of two is out.dat_two"
        assert said in history(bench, "child")
        assert "dat" not in bench.output("bare").replace("mesh.dat", "")
        grandchild = bench.directory_of("grandchild")
        assert os.readlink(grandchild / "out.dat_two") == f"../two_{two[:8]}/out.dat"  # no chain of links
        assert os.readlink(grandchild / "child.out") == f"../child_{child[:8]}/child.out"
        assert not (grandchild / "job.json").is_symlink()
        assert (bench.directory_of("child") / "preprocess.out").exists() is False  # it printed nothing

    @pytest.mark.slow
    def test_a_parent_of_the_same_name_does_not_get_its_childs_output(self, bench: Bench) -> None:
        say = bench.script("SAY", "import sys; print(sys.argv[1])")
        first = bench.job("same", say, args="first")
        second = bench.job("same", say, "--parents", first, args="second", workflow="V")
        bench.launch()
        child = bench.site / "data" / "V" / f"same_{second[:8]}"
        assert (child / "same.out").read_text() == "second\n"
        assert bench.output("same") == "first\n"
        assert (child / "same.out_same").read_text() == "first\n"

    @pytest.mark.slow
    def test_the_program_is_told_its_parents(self, bench: Bench) -> None:
        told = bench.script("TOLD", TOLD)
        parents = [bench.job(name, told) for name in "ab"]
        bench.job("child", told, "--parents", ",".join(reversed(parents)))
        bench.launch()
        assert json.loads(bench.output("child"))["BALSAM_PARENT_IDS"] == json.dumps(parents[::-1])
        assert json.loads(bench.output("a"))["BALSAM_PARENT_IDS"] == "[]"

    @pytest.mark.slow
    def test_a_job_of_thousands_of_parents_can_be_started(self, bench: Bench) -> None:
        told = bench.script("TOLD", TOLD)
        parent = Job(new_id(), "parent", "V", application=told)
        parents = [replace(parent, id=new_id()) for _ in range(4000)]
        with open_store(Site(bench.site).database) as store:
            store.add_jobs(parents, Actor.COMMAND)
            store.set_state([one.id for one in parents], State.USER_KILLED, Actor.COMMAND)
        ids = [one.id for one in parents]
        bench.job("few", told, "--parents", ",".join(ids[:2000]), "--on-parent-failure", "run")
        bench.job("many", told, "--parents", ",".join(ids), "--on-parent-failure", "run")
        bench.launch("--wf-filter", "W")
        assert json.loads(bench.output("few"))["BALSAM_PARENT_IDS"] == json.dumps(ids[:2000])
        assert json.loads(bench.output("many"))["BALSAM_PARENT_IDS"] is None
        assert json.loads((bench.directory_of("many") / "job.json").read_text())["parents"] == ids
        assert "0 files of 4000 parents linked" in history(bench, "many")


class TestWaiting:
    @pytest.mark.slow
    def test_with_an_idle_time_out_a_launcher_takes_what_comes_and_then_ends(self, bench: Bench) -> None:
        ok = bench.script("OK", "print('done')")
        launcher = bench.start("--idle-timeout", "8")
        wait_until(lambda: (bench.site / "run" / "endpoint.json").exists(), 60, "the launcher")
        bench.job("late", ok)
        wait_until(lambda: bench.state("late") == "JOB_FINISHED", 60, "the job that came later")
        launcher.communicate(timeout=60)
        assert launcher.returncode == 0
        assert time.time() - bench.attempts()[0]["end"] > 8.0
        assert bench.states("late") == ["CREATED", "READY", "RUNNING", "RUN_DONE", "JOB_FINISHED"]

    @pytest.mark.slow
    def test_a_running_script_keeps_a_launcher_that_does_not_wait(self, bench: Bench) -> None:
        flag = bench.directory / "go"
        ok = bench.script("OK", "print('done')")
        bench.job("j", ok, "--postprocess", f"{program(bench, 'wait', WAIT)} {flag}")
        launcher = bench.start()
        wait_for(bench, "j", "postprocess")
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(1.0)
        flag.touch()
        assert launcher.wait(60) == 0
        assert bench.state("j") == "JOB_FINISHED"
        launcher.communicate()


@pytest.mark.slow
def test_however_often_launchers_are_killed_every_job_goes_its_whole_way_in_order(
    bench: Bench,
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    ledger = bench.directory / "ledger"
    note = program(
        bench, "note",
        "import os, sys, time\n"
        "def say(what):\n"
        "    with open(sys.argv[1], 'a') as file:\n"
        "        file.write(f\"{os.environ['BALSAM_JOB_ID']} {sys.argv[2]} {what}\\n\")\n"
        "say('begins'); time.sleep(0.3); say('ends')\n",
    )  # fmt: skip
    scripts = [f"{note} {ledger} {what}" for what in ("pre", "run", "post")]
    bench.nas(
        "app", "--name", "A", "--exec", scripts[1], "--preprocess", scripts[0], "--postprocess", scripts[2]
    )
    ids: list[str] = []
    for number in range(10):
        parents = dice.sample(ids, min(len(ids), dice.randrange(3)))
        ids.append(bench.job(f"j{number}", "A", "--parents", ",".join(parents)))
    for _ in range(6):
        launcher = bench.start("--job-mode", "serial", "--nodes", "5")
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(dice.uniform(0.8, 4.0))
        launcher.kill()
        launcher.communicate(timeout=60)
    bench.launch("--job-mode", "serial", "--nodes", "5", timeout_s=120)
    lines = [line.split() for line in ledger.read_text().splitlines()]
    for number, job in enumerate(ids):
        recorded = states(bench, f"j{number}")
        assert [state for state in recorded if state not in ("RUNNING", "RESTART_READY")] == [
            "READY", "PREPROCESSED", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED",
        ]  # fmt: skip
        order = [what for one, *what in lines if one == job]
        for stage in ("pre", "run", "post"):  # what was cut short is done again, what was not is not
            assert order.count([stage, "ends"]) >= 1
        assert order.index(["pre", "ends"]) < order.index(["run", "begins"])
        assert order.index(["run", "ends"]) < order.index(["post", "begins"])
    for path in bench.site.glob("data/W/j*/result.json"):
        assert json.loads(path.read_text())["outcome"] == "ok"
    last = {line["name"]: line["outcome"] for line in bench.attempts()}
    assert set(last.values()) == {"ok"}
