"""``python -m nas_hpc.trial.run -- COMMAND…``: the program under which a trial's trainer runs.

It starts the trainer, passes signals and output on, reads the reward from the trial's metric file when the
trainer has ended, and says how the trial ended: in ``job_status.json`` of the trial's directory, in
``result.json`` of its job, and in a line with ``DH-OUTPUT:``. Where the trainer was asked to end (SIGTERM, as
at the end of an allocation) it says nothing and ends by that signal: such a trial has not failed.

Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from nas_hpc.errors import WrongCall
from nas_hpc.files import replace_file
from nas_hpc.processes import ranks
from nas_hpc.trial import checkpoints, place, proxy, rewards, status
from nas_hpc.trial.child import INTERRUPTIONS, Child
from nas_hpc.trial.latency import LATENCY_KEY, forget_request, measured_latency
from nas_hpc.trial.metrics import Report, read_reports
from nas_hpc.trial.status import Ended

LINK = "trial"
LOCK_FILE = ".lock"
"""In the trial's directory: who trains there has it locked."""
LOCK_S = 120.0
"""So long an earlier attempt that was told to end may take for that."""
_LOOK_S = 0.2
_TIMED_OUT = 124
"""Exit code of a trainer that took too long, as that of the program timeout."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What is to be run."""

    directory: Path
    metric: str
    command: tuple[str, ...]
    limit_s: float | None
    environ: dict[str, str]
    scaling: tuple[float, float]
    """Factor and offset, for rewards that the trainer has not scaled."""

    @property
    def metric_file(self) -> Path:
        """Where its reports are."""
        return Path(self.environ[place.METRIC_FILE])


@dataclass(frozen=True, slots=True)
class Heard:
    """What a trial reported."""

    last: Report | None = None
    """The newest report of the metric."""
    reward: float = math.nan
    """What it says of that."""
    names: tuple[str, ...] = ()
    """Of all that was reported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a trial; the exit code: 0 if it gave a reward, else the trainer's, 124 if it took too long."""
    trial = _trial(sys.argv[1:] if argv is None else argv)
    if (ranks.rank() or 0) != 0:
        _become(trial)
    _be_alone(trial)
    before = status.read_status(trial.directory)
    if before is not None and before.ok and before.reward is not None and _of_job():
        return _say_again(trial, before)
    _prepare(trial, before)
    start = time.time()
    child = Child(trial.command, trial.environ)
    try:
        code = child.run(trial.limit_s)
    except OSError as error:
        reason = f"cannot start {trial.command[0]}: {error.strerror or error}"
        return _say(trial, status.failed(status.ERROR, reason), Heard(), start, 127)
    if child.interrupted is not None:
        _end_by(child.interrupted, trial)
    if -code in INTERRUPTIONS and not child.timed_out:
        _end_by(-code, trial)  # a batch system ends all processes at once, and this one hears of it last
    heard = _hear(trial)
    ended = replace(_judge(trial, code, child, heard), return_code=code)
    if ended.ok:
        for number in INTERRUPTIONS:  # it ends the measurement, which gets it, too: the training is over
            signal.signal(number, _go_on)
        rewards.measure_left(trial.directory)
    if child.printed and not child.printed.endswith("\n"):
        _print("", sys.stdout)
    return _say(trial, ended, heard, start, _exit_code(ended, code))


def _trial(argv: Sequence[str]) -> Trial:
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="python -m nas_hpc.trial.run",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT …]",
        description="Run a trial's trainer and say how the trial ended.",
    )
    parser.add_argument(
        "--trial-dir", help=f"the trial's directory (default: {place.DIRECTORY}, else this one)"
    )
    parser.add_argument("--metric", help=f"the metric that is the reward (default: {place.TARGET})")
    parser.add_argument("--time-limit-s", type=_seconds, help="end the trainer after so many seconds")
    flags = parser.parse_args(words[:at])
    command = tuple(words[at + 1 :])
    if not command:
        parser.error("there is no trainer: give its command behind --")
    environ = dict(os.environ)
    try:
        scaling = place.reward_scaling() or (1.0, 0.0)
    except WrongCall as error:
        parser.error(error.message)
    directory = os.path.abspath(flags.trial_dir or place.trial_dir() or ".")
    metric = place.target_metric() if flags.metric is None else flags.metric
    if flags.trial_dir:  # those of the surroundings are of another one
        for name in (place.METRIC_FILE, place.MODEL_DIR):
            environ.pop(name, None)
    environ.update({place.DIRECTORY: directory, place.TARGET: metric, place.METRIC_TAG: metric})
    environ = place.completed(environ)
    return Trial(Path(directory), metric, command, flags.time_limit_s, environ, scaling)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no duration: give seconds, more than 0")
    return value


def _become(trial: Trial) -> None:
    """Of the ranks of an MPI program the first one watches; the others are their trainers."""
    try:
        os.execvpe(trial.command[0], trial.command, trial.environ)
    except OSError as error:
        sys.exit(f"nas-hpc: cannot start {trial.command[0]}: {error.strerror}")


def _be_alone(trial: Trial) -> None:
    """Wait for what still runs of this trial: it was told to end, and what it writes is not this attempt's.

    The lock is held until the last of its processes that has the descriptor is gone. Where locks are not to
    be had one does without.
    """
    try:
        trial.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(trial.directory / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        _useless(trial, error)
    os.set_inheritable(descriptor, True)
    until, still = time.monotonic() + LOCK_S, f"another process still trains in {trial.directory}"
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                sys.exit(f"nas-hpc: {still}: end it first")
            if not told:
                _print(f"nas-hpc: {still}: waiting for its end", sys.stderr)
                told = True
            time.sleep(_LOOK_S)
            continue
        except OSError:
            os.close(descriptor)
        return


def _useless(trial: Trial, error: OSError) -> NoReturn:
    sys.exit(f"nas-hpc: cannot use the trial's directory {trial.directory}: {error.strerror}")


def _prepare(trial: Trial, before: Ended | None) -> None:
    """Leave nothing that could be taken for this attempt's: how an earlier one ended, and what a failed one
    reported, recorded and kept, for the next one begins anew. One that was interrupted goes on."""
    try:
        if before is not None and not before.ok:
            for path in (
                trial.metric_file,
                trial.directory / proxy.TRAINING_FILE,
                trial.directory / checkpoints.DIRECTORY,
            ):
                _set_aside(path)
        checkpoints.remove_torn(trial.directory)
        forget_request(trial.directory)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(trial.directory / status.STATUS_FILE)  # last: what was begun here is begun again
    except OSError as error:
        _useless(trial, error)
    here = os.environ.get("NAS_HPC_JOB_DIR")
    if here and Path(here).resolve() != trial.directory.resolve():
        with contextlib.suppress(OSError):  # it is there, or links cannot be made: it is for people's eyes
            os.symlink(trial.directory, os.path.join(here, LINK))


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.failed")
    if path.is_dir() and aside.is_dir():
        shutil.rmtree(aside)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, aside)


def _hear(trial: Trial) -> Heard:
    heard, names = Heard(), dict[str, None]()
    for one in read_reports(trial.metric_file):
        names.update(dict.fromkeys(one.names))
        value = one.of(trial.metric, trial.scaling)
        if value is not None:
            heard = Heard(one, value)
    return replace(heard, names=tuple(names))


def _judge(trial: Trial, code: int, child: Child, heard: Heard) -> Ended:
    if child.timed_out:
        return status.failed(status.TIMEOUT, f"it took longer than {trial.limit_s:g} s")
    own = status.read_status(trial.directory)
    if code != 0:
        ended = status.why(code, child.said)
        diverged = heard.last is not None and not math.isfinite(heard.reward)
        if ended.reason_class == status.ERROR and (diverged or (own and own.status == status.FAILED_NAN)):
            return status.failed(status.NAN, ended.reason)
        return ended
    if own is not None and not own.ok:
        reason = own.reason or status.last_exception(child.said) or f"the trainer wrote {own.status!r}"
        return status.failed(own.reason_class, reason)
    if heard.last is None:
        return _nothing(trial.metric, heard.names)
    if not math.isfinite(heard.reward):
        return status.failed(status.NAN, f"{trial.metric or 'the metric'} is not finite in its last report")
    return Ended(status.SUCCESS, reward=heard.reward, step=heard.last.step)


def _nothing(metric: str, names: Sequence[str]) -> Ended:
    """The failure of a trainer that ended well and did not report the metric."""
    waited = f"the metric {metric!r}, for which the search waits" if metric else "a metric"
    text = f"the trainer has ended and did not report {waited}; "
    if names:
        return status.failed(status.METRIC, f"{text}it reported {', '.join(map(repr, names))}")
    here = ranks.find()
    if here is not None and (here.size or 1) > 1:  # it may not have come to its reports
        return status.failed(status.ERROR, f"{text}perhaps another of its {here.size} ranks failed")
    return status.failed(status.METRIC, f"{text}it reported nothing")


def _exit_code(ended: Ended, code: int) -> int:
    if ended.ok:
        return 0
    if ended.reason_class == status.TIMEOUT:
        return _TIMED_OUT
    return 128 - code if code < 0 else code or 1


def _say(trial: Trial, ended: Ended, heard: Heard, start: float, code: int) -> int:
    """Put the end where others look for it, a line on the output last; the exit code.

    A trial that has ended is not interrupted any more; and a place that cannot be written, as a log on a full
    disk, does not keep its end from the others.
    """
    for number in INTERRUPTIONS:
        signal.signal(number, signal.SIG_IGN)
    ended = replace(ended, start=start, end=time.time())
    if not ended.ok:
        which = trial.environ.get(place.NUMBER, "")
        name = f"trial {which}" if which else f"the trial in {trial.directory}"
        _print(f"nas-hpc: {name} failed ({ended.reason_class}): {ended.reason}", sys.stderr)
    for write in (
        partial(status.write_status, trial.directory, ended),
        partial(_write_result, trial, ended, heard, code),
    ):
        try:
            write()
        except OSError as error:
            _print(f"nas-hpc: cannot write how the trial ended: {error}", sys.stderr)
            code = code or 1
    _print(f"DH-OUTPUT: {ended.reward!r}" if ended.ok else f"DH-OUTPUT: F_{ended.reason_class}", sys.stdout)
    return code


def _print(line: str, stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        print(line, file=stream, flush=True)


def _say_again(trial: Trial, before: Ended) -> int:
    """The trial has ended well, and that was not taken: it was killed at the same moment, say. Its reward
    stands, without another training; the exit code."""
    now = time.time()
    try:
        _write_result(trial, replace(before, start=now, end=now), _hear(trial), 0)
    except OSError as error:
        _print(f"nas-hpc: cannot write how the trial ended: {error}", sys.stderr)
        return 1
    _print(f"nas-hpc: the training in {trial.directory} has ended before: its reward stands", sys.stderr)
    _print(f"DH-OUTPUT: {before.reward!r}", sys.stdout)
    return 0


def _of_job() -> bool:
    """Whether this is a job, and not tried by hand; of one rank, as others would wait for this one."""
    here = ranks.find()
    alone = here is None or here.size == 1
    return alone and bool(os.environ.get("NAS_HPC_JOB_DIR") and os.environ.get("NAS_HPC_JOB_ID"))


def _write_result(trial: Trial, ended: Ended, heard: Heard, code: int) -> None:
    """Leave the job's result.json: a reason of its own, and metrics as metadata."""
    directory, job = os.environ.get("NAS_HPC_JOB_DIR"), os.environ.get("NAS_HPC_JOB_ID")
    attempt = os.environ.get("NAS_HPC_ATTEMPT", "")
    if not directory or not job or not attempt.isdigit():
        return
    outcome = "ok" if ended.ok else "timeout" if ended.reason_class == status.TIMEOUT else "error"
    metadata: dict[str, Any] = {"step": ended.step} if ended.step is not None else {}
    if heard.last is not None and ended.ok:
        others = heard.last.others.items()
        metadata.update({name: item for name, item in others if math.isfinite(item)})
        latency = measured_latency(trial.directory)
        metadata.update({} if latency is None else {LATENCY_KEY: latency})
    if not ended.ok:
        metadata["reason_class"] = ended.reason_class
    content = {
        "job": job,
        "attempt": int(attempt),
        "outcome": outcome,
        "objective": ended.reward,
        "metadata": metadata,
        "reason": ended.reason,
        "start": ended.start,
        "end": ended.end,
        "return_code": code,
    }
    replace_file(os.path.join(directory, "result.json"), json.dumps(content), mode=0o644)


def _go_on(_: int, __: FrameType | None) -> None:
    """Not ignored: what this process starts would ignore it, too."""


def _end_by(number: int, trial: Trial) -> None:
    """End this process by the signal, as if nothing had caught it.

    The trial has not ended, though its trainer may have written so: the next attempt would begin anew.
    """
    with contextlib.suppress(OSError):
        os.unlink(trial.directory / status.STATUS_FILE)
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # it is ignored by who is the first of a namespace


def _let_go_of_full_logs() -> None:
    """What cannot be written to a log is given up: Python would try again at its end, and make 120 of the
    exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):
            continue  # it was closed before the start, or since
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


if __name__ == "__main__":
    code = main()
    _let_go_of_full_logs()
    sys.exit(code)
