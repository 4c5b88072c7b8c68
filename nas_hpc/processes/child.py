"""The first steps of a child forked from a warm interpreter, before it calls the run function.

Standard library only, Python 3.8 or later: it runs in the user's interpreters.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from nas_hpc.processes import linux, results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GPU_MASKS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
"""Appending: the output of earlier attempts of a job is kept."""


class StartFailed(Exception):
    """The attempt's program could not be started; the message says why."""


def leave_keeper(order: dict[str, Any], keeper: int, log_fd: int) -> None:
    """Begin a session of its own, recorded before anything of the user's runs in it."""
    os.setsid()
    linux.die_with_parent(keeper)
    name = f"{order['job']}:{order['attempt']}".encode()
    os.write(log_fd, b"+%d %s attempt %s\n" % (os.getpid(), linux.own_start_ticks(), name))
    # The functions of the module signal make enumerations of all numbers, in pages that a child must copy.
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)


def prepare_directory(order: dict[str, Any]) -> int:
    """Make the attempt's directory with what belongs there; its output, opened. Raises StartFailed."""
    directory = order["dir"]
    doing = f"make the directory {directory}"
    try:
        try:
            os.mkdir(directory)
        except FileExistsError:
            if results.started_attempt(directory, order["job"]) > order["attempt"]:
                raise StartFailed("a later attempt of the job has been started") from None  # this one hung
        except FileNotFoundError:
            os.makedirs(directory, exist_ok=True)
        if order["record"] == "each" or order["argv"]:  # a program may ask which job it is (nas_hpc.jobs)
            doing = f"write {directory}/job.json"
            results.replace_file(directory, "job.json", order["job_json"].encode(), sync=False)
        doing = f"open {directory}/{order['name']}.out"
        return open_output(order)
    except OSError as error:
        raise StartFailed(f"cannot {doing}: {error.strerror}") from None


def open_output(order: dict[str, Any]) -> int:
    """Open the attempt's output. Raises OSError."""
    return os.open(f"{order['dir']}/{order['name']}.out", OUTPUT_FLAGS, 0o666)


def settle_in(order: dict[str, Any]) -> None:
    """Enter the job's directory, send the output there, pin the process. Raises StartFailed."""
    output = prepare_directory(order)
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.chdir(order["dir"])
    except OSError as error:
        raise StartFailed(f"cannot use the directory {order['dir']}: {error.strerror}") from None
    if order["cores"]:
        pin(order["cores"])


def pin(cores: list[int]) -> None:
    """Let this thread run on ``cores`` only. Raises StartFailed."""
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        allowed = sorted(os.sched_getaffinity(0))
        reason = f"cannot pin the process to the cores {cores}: {error.strerror}; allowed are {allowed}"
        raise StartFailed(reason) from None


def masks(gpus: list[int]) -> dict[str, str]:
    """Variables by which the GPU runtimes see only ``gpus``; none if the attempt has no GPU of its own."""
    value = ",".join(map(str, gpus))
    return dict.fromkeys(GPU_MASKS, value) if gpus else {}


def size_of_output(order: dict[str, Any]) -> int:
    """Where the output of this attempt begins: that of the attempts before it is kept."""
    try:
        return os.stat(os.path.join(order["dir"], order["name"] + ".out")).st_size
    except OSError:
        return 0
