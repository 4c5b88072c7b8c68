"""The first steps of a forked child, before it becomes the program or calls the run function.

Standard library only, Python 3.8 or later. In a starter other threads may have held locks at the moment of
the fork: nothing here imports, logs, or uses a buffered stream.
"""

from __future__ import annotations

import os
import resource
import signal

from nas_hpc.processes import linux, results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

GPU_MASKS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


class StartFailed(Exception):
    """The attempt's program could not be started; the message says why."""


def record(log_fd: int, kind: str, name: str) -> None:
    """Note this session in the launcher's log, so that whoever survives can end it. Appends are atomic."""
    pid = os.getpid()
    os.write(log_fd, f"+{pid} {linux.start_ticks('self')} {kind} {name}\n".encode())


def leave_keeper(order: dict[str, Any], keeper: int, log_fd: int, nofile: int) -> None:
    """Begin a session of its own, recorded before anything of the user's runs in it."""
    os.setsid()
    linux.die_with_parent(keeper)
    record(log_fd, "attempt", f"{order['job']}:{order['attempt']}")
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if nofile:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, hard))


def settle_in(order: dict[str, Any]) -> None:
    """Make the job's directory with job.json, send the output there, pin the process. Raises StartFailed."""
    directory = order["dir"]
    doing = f"make the directory {directory}"
    try:
        try:
            os.mkdir(directory)
        except FileExistsError:
            pass
        except FileNotFoundError:
            os.makedirs(directory, exist_ok=True)
        doing = f"write {directory}/job.json"
        results.replace_file(directory, "job.json", order["job_json"].encode(), sync=False)
        doing = f"open {directory}/{order['name']}.out"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        output = os.open(os.path.join(directory, order["name"] + ".out"), flags, 0o666)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        doing = f"enter the directory {directory}"
        os.chdir(directory)
        if order["cores"]:
            doing = f"pin the process to the cores {order['cores']}"
            os.sched_setaffinity(0, order["cores"])
    except OSError as error:
        raise StartFailed(f"cannot {doing}: {error.strerror}") from None


def masks(gpus: list[int]) -> dict[str, str]:
    """Variables by which the GPU runtimes see only ``gpus``; none if the attempt has no GPU of its own."""
    value = ",".join(map(str, gpus))
    return dict.fromkeys(GPU_MASKS, value) if gpus else {}


def become(order: dict[str, Any]) -> NoReturn:
    """Replace this process by the order's program. Raises StartFailed."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores these two, and ignoring survives exec
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    environ = order["env"]
    environ.update(masks(order["gpus"]))
    argv = order["argv"]
    program = argv[0]
    if "/" in program:
        candidates = [program]
    else:
        folders = environ.get("PATH", os.defpath).split(":")
        candidates = [os.path.join(folder, program) for folder in folders if folder]
    refused: OSError | None = None
    for candidate in candidates:
        try:
            os.execve(candidate, argv, environ)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            refused = error  # as a shell does: another folder of PATH may have one that can be run
        except OSError as error:
            refused = error
            break
        except ValueError as error:
            raise StartFailed(f"cannot start {program!r}: {error}") from None
    if refused is not None:
        raise StartFailed(f"cannot start {program}: {refused.strerror}")
    if "/" in program:
        what = "its interpreter (the #! line) does not exist" if os.path.exists(program) else "no such file"
        raise StartFailed(f"cannot start {program}: {what}")
    raise StartFailed(f"cannot start {program}: no such program in PATH ({environ.get('PATH', os.defpath)})")
