"""The program under which a trial's trainer runs: what it says of how the trial ended."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.analytics.proxy.curves import read_curve
from nas_hpc.trial import load_checkpoint, place
from nas_hpc.trial.latency import measured_latency
from nas_hpc.trial.metrics import last_metrics
from nas_hpc.trial.proxy import post_desired_training_pct
from nas_hpc.trial.status import Ended, read_status
from tests.support import wait_until

CHECKOUT = str(Path(__file__).parents[2])


class Bench:
    """A job's directory beside a trial's, and trainers that are one piece of Python."""

    def __init__(self, tmp_path: Path) -> None:
        self.trial = tmp_path / "root" / "nas" / "search" / "3"
        self.job = tmp_path / "task3_12345678"
        self.job.mkdir()
        self.environ = {
            **os.environ,
            "PYTHONPATH": CHECKOUT,
            **place.environment(self.trial, "3", "top_1_accuracy"),
            "NAS_HPC_JOB_DIR": str(self.job),
            "NAS_HPC_JOB_ID": "12345678" * 4,
            "NAS_HPC_ATTEMPT": "2",
        }

    def start(self, code: str, *options: str) -> subprocess.Popen[str]:
        """Start a trial whose trainer is ``code``."""
        trainer = [sys.executable, "-c", textwrap.dedent(code)]
        return self.start_program(*options, "--", *trainer)

    def start_program(self, *words: str, stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start the wrapper with ``words``."""
        return subprocess.Popen(
            [sys.executable, "-m", "nas_hpc.trial.run", *words],
            env=self.environ,
            cwd=self.job,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def run(self, code: str, *options: str) -> tuple[int, str, str]:
        """Run a trial to its end: exit code, output, errors."""
        return self.end_of(self.start(code, *options))

    def end_of(self, process: subprocess.Popen[str]) -> tuple[int, str, str]:
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def status(self) -> Ended:
        found = read_status(self.trial)
        assert found is not None
        return found

    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.job / "result.json").read_text())
        return content


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


GOOD = """
    from nas_hpc.trial import report
    report("top_1_accuracy", 0.5, 1)
    print("training", end="", flush=True)
    report("top_1_accuracy", 0.75, 2, other_metrics={"latency": 3.5})
"""


def test_a_trial_that_ends_well_says_its_reward_everywhere(bench: Bench) -> None:
    assert bench.run(GOOD) == (0, "training\nDH-OUTPUT: 0.75\n", "")
    status = json.loads((bench.trial / "job_status.json").read_text())
    assert (status["job_status"], status["reward"], status["step"]) == ("success", 0.75, 2)
    result = bench.result()
    assert (result["job"], result["attempt"], result["outcome"]) == ("12345678" * 4, 2, "ok")
    assert (result["objective"], result["metadata"]) == (0.75, {"step": 2, "latency": 3.5})
    assert last_metrics(bench.trial) == {"top_1_accuracy": 0.75, "latency": 3.5}
    assert (bench.job / "trial").resolve() == bench.trial


def test_a_trainer_of_vertex_ai_nas_works_as_it_is(bench: Bench) -> None:
    trainer = [sys.executable, str(Path(__file__).with_name("vertex_trainer.py"))]
    bench.trial.mkdir(parents=True)
    given = bench.trial / "nas_params_str.json"
    given.write_text('{"score": 80.0}')
    post_desired_training_pct(bench.trial, 50.0)
    bench.environ["NAS_HPC_REWARD_SCALING"] = "0.01,0"
    flags = [f"--nas_params_str={given}", f"--job-dir={bench.trial}", "--num_epochs=3"]
    assert bench.end_of(bench.start_program("--", *trainer, *flags)) == (0, "DH-OUTPUT: 0.4\n", "")
    assert (bench.status().reward, bench.status().step) == (0.4, 50)
    first = {"model_latency": 3.5, **{f"metric_{at}": at for at in range(4)}, "model_flops": 0.0}
    assert bench.result()["metadata"] == {"step": 50, **first}
    assert last_metrics(bench.trial) == {"top_1_accuracy": 40.0, **first}
    curve = read_curve(bench.trial)
    assert curve is not None
    assert (curve.pcts.tolist(), curve.scores.tolist()) == ([25.0, 50.0], [20.0, 40.0])
    assert curve.hours_at(50) == pytest.approx(0.02)

    given.write_text('{"score": NaN}')  # which one trains again, and how it fails
    again = bench.trial.parents[1] / "train" / "1"
    bench.environ |= place.environment(again, "1", "top_1_accuracy")
    flags += [f"--retrain_search_job_dir={bench.trial.parent}", "--retrain_search_job_trials=3"]
    assert bench.end_of(bench.start_program("--", *trainer, *flags))[:2] == (1, "DH-OUTPUT: F_nan\n")
    status = read_status(again)
    assert status is not None
    assert (status.status, status.reason_class) == ("failed_with_nan_error", "nan")
    assert "NaN loss during training." in status.reason


@pytest.mark.parametrize(
    ("code", "reason_class", "status", "words"),
    [
        ("raise ValueError('wrong\\nshape')", "error", "failed", "ValueError: wrong (exit code 1)"),
        (
            "from nas_hpc.trial import report; report('top_1_accuracy', float('inf'), 1)",
            "nan",
            "failed_with_nan_error",
            "not finite in its last report",
        ),
        (
            "from nas_hpc.trial import report; report('accuracy', 0.5, 1, other_metrics={'flops': 1})",
            "metric",
            "failed",
            "waits for the metric 'top_1_accuracy', and this trainer reports 'accuracy', 'flops'",
        ),
    ],
)
def test_a_failure_has_its_class_and_its_reason(
    bench: Bench, code: str, reason_class: str, status: str, words: str
) -> None:
    returned, output, errors = bench.run(code)
    ended = bench.status()
    assert (ended.reason_class, ended.status) == (reason_class, status), ended
    assert words in ended.reason
    assert returned == 1
    assert output.splitlines()[-1] == f"DH-OUTPUT: F_{reason_class}"
    assert errors.splitlines()[-1] == f"nas-hpc: trial 3 failed ({reason_class}): {ended.reason}"
    result = bench.result()
    assert (result["outcome"], result["objective"], result["reason"]) == ("error", None, ended.reason)
    assert result["metadata"]["reason_class"] == reason_class


def test_a_trainer_that_takes_too_long_is_ended_and_its_class_is_timeout(bench: Bench) -> None:
    code, output, _ = bench.run("import time; time.sleep(600)", "--time-limit-s", "0.3")
    assert (code, output) == (124, "DH-OUTPUT: F_timeout\n")
    assert bench.status().reason == "it took longer than 0.3 s"
    assert bench.result()["outcome"] == "timeout"


def test_a_program_that_is_not_there_is_named(bench: Bench) -> None:
    code, _, errors = bench.end_of(bench.start_program("--", "/no/such/trainer"))
    assert code == 127
    assert "trial 3 failed (error): cannot start /no/such/trainer: No such file" in errors


def test_without_a_trainer_the_call_is_refused(bench: Bench) -> None:
    code, _, errors = bench.end_of(bench.start_program("--metric", "x"))
    assert code == 2
    assert "give its command behind --" in errors


SAVING = """
    import os, signal, time
    from nas_hpc.trial import report, should_stop
    should_stop()
    report("top_1_accuracy", 0.5, 1)
    heard = []
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *a: (heard.append(1), before(*a)))
    print("ready", flush=True)
    while not should_stop():
        time.sleep(0.01)
    time.sleep(0.05)
    with open(os.environ["NAS_HPC_TRIAL_DIR"] + "/job_status.json", "w") as file:
        file.write('{"job_status": "failed"}')  # as trainers that take a signal for an error do
    print("saved after", len(heard), flush=True)
"""


def test_one_that_is_asked_to_end_may_save_and_has_not_failed(bench: Bench) -> None:
    process = bench.start(SAVING)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)  # as an agent does
    code, output, errors = bench.end_of(process)
    assert (code, output, errors) == (-signal.SIGTERM, "saved after 1\n", "")
    assert read_status(bench.trial) is None
    assert not (bench.job / "result.json").exists()


def test_a_kill_of_the_wrapper_ends_the_trainer(bench: Bench) -> None:
    process = bench.start("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    assert process.stdout is not None
    trainer = int(process.stdout.readline())
    process.kill()
    wait_until(lambda: not _runs(trainer), what="the trainer's end")
    bench.end_of(process)


def test_what_a_trainer_leaves_behind_is_ended_with_it(bench: Bench) -> None:
    code, output, _ = bench.run("""
        import subprocess
        from nas_hpc.trial import report
        print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
        report("top_1_accuracy", 0.5, 1)
    """)
    assert code == 0
    left = int(output.split()[0])
    wait_until(lambda: not _runs(left), what="the end of what was left")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_after_a_failed_attempt_a_trial_begins_anew(bench: Bench) -> None:
    trained = """
        from nas_hpc import trial
        trial.report("top_1_accuracy", 0.5, 1)
        trial.update_trial_training_accuracy_metric(None, 0.5, 0, 9, 1.0, 20)
        trial.save_checkpoint(None, 10, b"weights")
        raise KeyError(1)
    """
    assert bench.run(trained)[0] == 1
    assert bench.run(trained)[0] == 1
    assert bench.run("pass")[0] == 1
    assert bench.status().reason_class == "metric"
    assert load_checkpoint(bench.trial) is None
    left = [
        ".lock",
        "TRIAL_TRAINING_METRICS.json.failed",
        "checkpoint.failed",
        "job_status.json",
        "metrics.jsonl.failed",
    ]
    assert sorted(path.name for path in bench.trial.iterdir()) == left


def test_all_output_of_both_kinds_goes_through(bench: Bench) -> None:
    code, output, errors = bench.run("""
        import sys
        from nas_hpc.trial import report
        report("top_1_accuracy", 0.5, 1)
        for at in range(3000):
            print("out", at)
            print("err", at, file=sys.stderr)
    """)
    assert code == 0
    assert output.splitlines() == [*(f"out {at}" for at in range(3000)), "DH-OUTPUT: 0.5"]
    assert errors.splitlines() == [f"err {at}" for at in range(3000)]


def test_what_an_interrupted_attempt_reported_counts_and_what_it_left_half_written_goes(bench: Bench) -> None:
    code, _, _ = bench.run("""
        import os
        from nas_hpc import trial
        trial.report("top_1_accuracy", 0.5, 1)
        os.replace = lambda *_: os.kill(os.getpid(), 15)
        trial.save_checkpoint(None, 2, b"weights")
    """)
    assert code == -signal.SIGTERM
    assert len(list((bench.trial / "checkpoint").iterdir())) == 1
    assert bench.run("pass") == (0, "DH-OUTPUT: 0.5\n", "")
    assert not list((bench.trial / "checkpoint").iterdir())


def test_a_training_is_not_lost_to_the_end_of_the_measurement_behind_it(bench: Bench) -> None:
    code = "import sys, time; print('measures', file=sys.stderr, flush=True); time.sleep(600)"
    who = {"command": [sys.executable, "-c", code], "limit_s": 600}
    bench.environ["NAS_HPC_TRIAL_LATENCY"] = json.dumps(who)
    process = bench.start("""
        import os
        from nas_hpc.trial import report
        report("top_1_accuracy", 0.5, 1)
        os.mkdir(os.environ["AIP_MODEL_DIR"])
        open(os.environ["AIP_MODEL_DIR"] + "/model", "w")
    """)
    assert process.stderr is not None
    assert process.stderr.readline() == "measures\n"
    os.killpg(process.pid, signal.SIGTERM)  # as an agent does
    assert bench.end_of(process)[:2] == (0, "DH-OUTPUT: 0.5\n")
    assert (bench.result()["outcome"], bench.status().reward) == ("ok", 0.5)
    assert measured_latency(bench.trial) is None


def test_what_cannot_be_written_does_not_hide_the_rest_of_how_a_trial_ended(bench: Bench) -> None:
    trainer = "import os, sys; os.mkdir(os.environ['NAS_HPC_TRIAL_DIR'] + '/job_status.json'); sys.exit(3)"
    with open("/dev/full", "w") as full:
        process = bench.start_program("--", sys.executable, "-c", trainer, stderr=full.fileno())
        code, output, _ = bench.end_of(process)
    assert (code, output) == (3, "DH-OUTPUT: F_error\n")
    assert (bench.result()["outcome"], bench.result()["reason"]) == ("error", "exit code 3")


def test_neither_a_hangup_that_is_ignored_nor_a_late_sigterm_keeps_a_trial_from_saying_how_it_ended(
    bench: Bench,
) -> None:
    reads, writes = os.pipe()
    os.write(writes, b"x" * fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096))  # so it waits when it says so
    words = ("--", sys.executable, "-c", "import os, sys; os.kill(os.getppid(), 1); sys.exit(3)")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; children inherit it
    try:
        process = bench.start_program(*words, stderr=writes)
    finally:
        signal.signal(signal.SIGHUP, before)
        os.close(writes)
    with open(reads, "rb") as errors:
        wait_until(
            lambda: process.poll() is not None or _ignores(process.pid, signal.SIGTERM),
            what="the end of the trainer",
        )
        process.terminate()
        assert b"trial 3 failed (error): exit code 3" in errors.read()
    assert bench.end_of(process)[:2] == (3, "DH-OUTPUT: F_error\n")
    assert (bench.status().reason, bench.result()["reason"]) == ("exit code 3", "exit code 3")


def _ignores(pid: int, number: int) -> bool:
    words = Path(f"/proc/{pid}/status").read_text().split()
    return bool(int(words[words.index("SigIgn:") + 1], 16) & (1 << (number - 1)))


def test_a_reward_that_was_not_taken_stands_without_another_training(bench: Bench) -> None:
    assert bench.run(GOOD)[0] == 0
    (bench.job / "result.json").unlink()
    bench.environ["NAS_HPC_ATTEMPT"] = "3"
    assert bench.run("print('trained')")[:2] == (0, "DH-OUTPUT: 0.75\n")
    result = bench.result()
    assert (result["attempt"], result["outcome"], result["objective"]) == (3, "ok", 0.75)
    assert result["metadata"] == {"step": 2, "latency": 3.5}
    assert bench.status().ok
    del bench.environ["NAS_HPC_JOB_ID"]  # by hand it is trained again
    assert bench.run("print('trained')")[1] == "trained\nDH-OUTPUT: 0.75\n"


def test_an_attempt_waits_for_the_end_of_the_one_before_it(bench: Bench) -> None:
    note = f"note = open({str(bench.job / 'ledger')!r}, 'a', buffering=1);"
    os.mkfifo(bench.job / "end")
    first = bench.start(f"""
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        {note}
        print("ready", flush=True)
        open({str(bench.job / "end")!r}).read()
        note.write("first\\n")
    """)
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    os.killpg(first.pid, signal.SIGTERM)
    second = bench.start(f"{note} note.write('second\\n'); print('trains', flush=True)")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(2)  # without waiting for the first one it would have ended
    assert not (bench.job / "ledger").read_text()
    (bench.job / "end").write_text("")
    assert bench.end_of(first)[0] == -signal.SIGTERM
    _, output, errors = bench.end_of(second)
    assert "trains\n" in output
    assert errors.startswith(f"nas-hpc: another process still trains in {bench.trial}: waiting for its end\n")
    assert (bench.job / "ledger").read_text() == "first\nsecond\n"


def test_of_the_ranks_of_an_mpi_program_only_the_first_says_something(bench: Bench) -> None:
    bench.environ |= {"PMI_RANK": "1", "PMI_SIZE": "2"}
    assert bench.run("print('rank 1')") == (0, "rank 1\n", "")
    assert not (bench.job / "result.json").exists()
    assert read_status(bench.trial) is None
    bench.environ["PMI_RANK"] = "0"
    assert bench.run("pass")[0] == 1
    assert bench.status().reason_class == "error"
    assert "perhaps another of its 2 ranks failed" in bench.status().reason
