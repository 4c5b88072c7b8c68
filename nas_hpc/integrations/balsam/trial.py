"""The program of the application ``nas_hpc_trial``: one evaluation, as a job of Balsam.

Balsam starts it in the evaluation's directory, where job.json says what to evaluate: a run function with a
configuration, or a program. It leaves result.json there, prints the objective as ``DH-OUTPUT:``, for Balsam's
own tools, and ends with 0, or with FAILED after a failure: in serial mode Balsam runs again by itself, up to
three times, what ends with 1 or 255, and writes nothing of it down.

An evaluation of one rank runs in a child of this process, which ends it when its time is over, and when a
file ``stop`` appears: in serial mode Balsam goes on with jobs that were killed. What has a valid result from
an earlier start (its launcher died before Balsam noted it) is not run again.

Standard library only, Python 3.8 or later: it runs in the user's interpreters.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

from nas_hpc.processes import (
    boot,
    call,
    child,
    environment,
    jobdata,
    linux,
    rank,
    rank_call,
    ranks,
    results,
    warm,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

FAILED = 3
"""The exit code of a failure."""
STOP_FILE = "stop"
STOP_LOOK_S = 5.0
"""So often the file is looked for in serial mode; the end of the evaluation itself wakes at once."""
TERM_S = 3.0
"""Between SIGTERM and SIGKILL."""
ATTEMPT = 1
"""Balsam tells no job how often it was started."""
_AGAIN = "again"
_OF_MPI = ("PMI_", "PMIX_", "OMPI_", "PRTE_", "PALS_", "HYDI_", "ALPS_APP_", "MPI_LOCAL")
_NEVER = float("inf")
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)


def main(arguments: list[str]) -> NoReturn:
    """Entry; the working directory is the evaluation's."""
    directory = os.getcwd()
    serial = os.environ.get("BALSAM_JOB_MODE") == "serial"
    if serial:
        _leave_group()
    try:
        with open("job.json", "rb") as stream:
            spec = json.loads(stream.read())
        if not arguments:
            _same_interpreter(spec)
        order = order_of(spec, directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f"{type(error).__name__}: {error}"
        print(f"{directory}/job.json does not say what to evaluate: {why}", flush=True)
        os._exit(FAILED)
    _no_input()
    if order["ranks"] == 1:
        _leave(alone(order, serial=serial))
    together(order)
    sys.exit(0)  # MPI libraries finish when the interpreter does


def order_of(spec: dict[str, Any], directory: str) -> dict[str, Any]:
    """What job.json says, as the modules of ``processes`` have it. Raises KeyError, ValueError, TypeError."""
    argv = [str(word) for word in spec["argv"]]
    asked = None if argv else {"run": spec["run"], "config": dict(spec["config"]), "seed": int(spec["seed"])}
    return {
        "job": spec["id"],
        "attempt": ATTEMPT,
        "name": spec["name"],
        "workflow": spec["workflow"],
        "dir": directory,
        "start": time.time(),
        "expects": True,
        "argv": argv,
        "call": asked,
        "sys_path": list(spec["sys_path"]),
        "environ": dict(spec["environ"]),
        "timeout_s": float(spec["timeout_s"]),
        "threads": int(spec["threads_per_rank"]),
        "gpus_per_rank": int(spec["gpus_per_rank"]),
        "ranks": int(spec["num_nodes"]) * int(spec["ranks_per_node"]),
        "ranks_per_node": int(spec["ranks_per_node"]),
    }


# -- one rank ------------------------------------------------------------------------------------------


def alone(order: dict[str, Any], *, serial: bool) -> dict[str, Any]:
    """Evaluate in a child; the result, which is in result.json, too."""
    before = results.read(order["dir"], order["job"], order["attempt"])
    if before is not None and before["outcome"] == "ok" and before["objective"] is not None:
        return before
    _forget_earlier(order)
    if is_stopped(order["dir"]):  # in serial mode Balsam starts what it has fetched, killed or not
        return results.make(order, "killed", "killed before it was started", end=time.time())
    if serial:
        for name in [name for name in os.environ if name.startswith(_OF_MPI)]:
            del os.environ[name]  # those of Balsam's worker: a library would take this process for it
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(order, parent)
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # the child does so, too: whoever comes first
    status = Waiting(order, pid, look=serial).status()
    result = results.judge(order, status, time.time())
    assert result is not None  # it is not asked to be patient
    if results.read(order["dir"], order["job"], order["attempt"]) != result:
        trouble = results.write(order["dir"], result)
        if trouble:
            result.update(outcome="error", objective=None, reason=trouble)
    return result


def _become(order: dict[str, Any], parent: int) -> NoReturn:
    """Be the child: call the run function, or become the program."""
    os.setpgid(0, 0)
    linux.die_with_parent(parent)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.environ.update(own_environment(order))
    if order["argv"]:
        _execute(order)
    result = evaluate(order, order["call"]["seed"], call.judge)
    call.flush()
    trouble = results.write(order["dir"], result)
    if trouble:
        print(trouble, flush=True)
    os._exit(FAILED if trouble else 0)


class Waiting:
    """The parent's part: to wait for its child, and to end it when that has to be."""

    def __init__(self, order: dict[str, Any], pid: int, *, look: bool) -> None:
        """``look``: whether the file ``stop`` is looked for."""
        self._order, self._pid = order, pid
        now = time.monotonic()
        self._over = now + order["timeout_s"] if order["timeout_s"] else _NEVER
        self._look = now + STOP_LOOK_S if look else _NEVER
        self._kill = _NEVER
        self._told = 0
        """The signal by which this process itself is to end."""

    def status(self) -> int:
        """The child's wait status, when it has ended."""
        while True:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if ended:
                if self._told:
                    _die(self._told)
                return status
            self._tend(time.monotonic())
            until = self._kill if self._ending else min(self._over, self._look)
            wait_s = min(3600.0, max(0.0, until - time.monotonic()))
            came = signal.sigtimedwait(_SIGNALS, wait_s)
            if came is not None and came.si_signo != signal.SIGCHLD and not self._told:
                self._told = came.si_signo
                self._end()

    @property
    def _ending(self) -> bool:
        return bool(self._told or "stop" in self._order)

    def _tend(self, now: float) -> None:
        if now >= self._kill:
            self._kill = now + TERM_S
            self._signal(signal.SIGKILL)
        elif self._ending:
            return
        elif now >= self._over:
            self._order["stop"] = ("timeout", f"ran longer than {self._order['timeout_s']:g} s")
            self._end()
        elif now >= self._look:
            self._look = now + STOP_LOOK_S
            if is_stopped(self._order["dir"]):
                self._order["stop"] = ("killed", "killed")
                self._end()

    def _end(self) -> None:
        self._kill = min(self._kill, time.monotonic() + TERM_S)
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, number)


def is_stopped(directory: str) -> bool:
    """Whether the evaluation was killed."""
    return os.path.exists(os.path.join(directory, STOP_FILE))


def _die(number: int) -> NoReturn:
    """End by a signal, so that Balsam sees what it asked for."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.kill(os.getpid(), number)
    os._exit(FAILED)


def _forget_earlier(order: dict[str, Any]) -> None:
    """Take away what an earlier start left of its end; other data it may find again."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(order["dir"], results.RESULT_FILE))
    attempt, data = jobdata.read(order["dir"], order["job"])
    if attempt and jobdata.objective_of(data) != (None, ""):
        content = jobdata.text(order["job"], attempt, jobdata.without_objective(data))
        results.replace_file(order["dir"], jobdata.DATA_FILE, content, sync=False)


# -- several ranks -------------------------------------------------------------------------------------


def together(order: dict[str, Any]) -> None:
    """Evaluate as one of several ranks; returns after a success. What rank 0 returns is the result."""
    here = _place(order)
    before = results.read(order["dir"], order["job"], order["attempt"])
    if before is not None and before["outcome"] == "ok" and not order["argv"]:
        if here.rank == 0:
            _print(before)
        return
    os.environ.update(own_environment(order))
    os.environ.update(rank_environment(order, here))
    if order["argv"]:
        _execute(order)
    number = here.rank
    judgement = call.judge if number == 0 else rank_call.ignore
    result = evaluate(order, rank_call.seed_of(order["call"]["seed"], number), judgement)
    call.flush()
    if result["outcome"] == "ok" and number == 0:
        trouble = results.write(order["dir"], result)
        if trouble:
            result.update(outcome="error", objective=None, reason=trouble)
    if result["outcome"] != "ok":
        _fail(order, number, result)
    if number == 0:
        _print(result)


def _place(order: dict[str, Any]) -> ranks.Ranks:
    """Which rank this is: as the MPI program tells, else as MPI itself does."""
    here = ranks.find()
    if here is None or (here.size is not None and here.size != order["ranks"]):
        try:
            from mpi4py import MPI

            here = ranks.Ranks(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
        except (ImportError, RuntimeError):
            here = here or ranks.Ranks(0, 1)
    if here.size not in (None, order["ranks"]):
        reason = f"{order['ranks']} ranks were to be started, and MPI tells of {here.size}"
        _fail(order, here.rank, results.make(order, "start_failed", reason, end=time.time()))
    return here


def rank_environment(order: dict[str, Any], here: ranks.Ranks) -> dict[str, str]:
    """What tells a rank its place, and of its node's GPUs its share where nobody else has divided them."""
    local = here.rank % order["ranks_per_node"] if here.local_rank is None else here.local_rank
    environ = {
        "NAS_HPC_RANK": str(here.rank),
        "NAS_HPC_LOCAL_RANK": str(local),
        ranks.RANKS_VARIABLE: str(order["ranks"]),
        ranks.RANKS_PER_NODE_VARIABLE: str(order["ranks_per_node"]),
    }
    each = order["gpus_per_rank"]
    if each and not any(name in os.environ for name in child.GPU_MASKS):
        environ.update(child.masks(list(range(local * each, (local + 1) * each))))
    return environ


def _fail(order: dict[str, Any], number: int, result: dict[str, Any]) -> NoReturn:
    """Leave why this rank failed, as the evaluation's result if it is the first one, and end all."""
    with contextlib.suppress(OSError):
        name = f".{results.RESULT_FILE}.rank{number}"
        results.replace_file(order["dir"], name, json.dumps(result).encode("ascii"), sync=True)
        source = os.path.join(order["dir"], name)
        with contextlib.suppress(FileExistsError):
            os.link(source, os.path.join(order["dir"], results.RESULT_FILE))
        os.unlink(source)
    rank.fail(order, number, result)


# -- both ----------------------------------------------------------------------------------------------


def evaluate(order: dict[str, Any], generators: int, judgement: Callable[[Any], Any]) -> dict[str, Any]:
    """Call the run function; the content of result.json."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    warm.restore_path(order["sys_path"])
    warm.line_buffered()

    def load() -> Callable[[Any], Any]:
        function = call.find(order["call"]["run"], warm.import_module)
        warm.limit_threads(order["threads"])
        return function

    called = {**order, "call": {**order["call"], "generators": generators}}
    mine = os.getpid()
    result = call.evaluate(called, load, judgement)
    if os.getpid() != mine:
        os._exit(0)  # the run function forked and its child came back here as well
    return result


def own_environment(order: dict[str, Any]) -> dict[str, str]:
    """What the evaluation finds in its environment beside what Balsam gives it."""
    return {
        **environment.thread_variables(order["threads"]),
        **order["environ"],
        "NAS_HPC_JOB_ID": order["job"],
        "NAS_HPC_JOB_DIR": order["dir"],
        "NAS_HPC_ATTEMPT": str(order["attempt"]),
        "NAS_HPC_WORKFLOW": order["workflow"],
    }


def _execute(order: dict[str, Any]) -> NoReturn:
    """Become the program of a job specification."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    argv = order["argv"]
    try:
        os.execvpe(argv[0], argv, dict(os.environ))
    except OSError as error:
        os.write(2, f"cannot start {argv[0]}: {error.strerror}\n".encode("utf-8", "backslashreplace"))
        os._exit(127)


def _same_interpreter(spec: dict[str, Any]) -> None:
    """Go on in the search's interpreter with its package where they are others: the application's are those
    of whoever registered it."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    if spec["interpreter"] != sys.executable or spec["package"] != package:
        room = "integrations.balsam"
        argv = boot.command(spec["interpreter"], "trial", _AGAIN, room=room, package=spec["package"])
        os.execv(argv[0], argv)


def _leave_group() -> None:
    """Out of the process group of Balsam's worker: when a launcher in serial mode is stopped its MPI program
    signals that whole group, and Balsam would note this job as failed. The worker ends its jobs itself."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    linux.end_with_parent()


def _no_input() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _print(result: dict[str, Any]) -> None:
    print(f"DH-OUTPUT: {result['objective']!r}", flush=True)


def _leave(result: dict[str, Any]) -> NoReturn:
    """Say the result and end."""
    if result["outcome"] == "ok" and result["objective"] is not None:
        _print(result)
        os._exit(0)
    print(f"nas-hpc: {result['outcome']}: {result['reason']}", flush=True)
    os._exit(FAILED)


if __name__ == "__main__":
    main(sys.argv[1:])
