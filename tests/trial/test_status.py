"""Why a training failed, told from its return code and its last words."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_hpc.trial.status import Ended, describe, failed, read_status, why, write_status


def raised(line: str, before: str = "") -> str:
    """What Python prints of an exception."""
    return f"{before}\nTraceback (most recent call last):\n  File 'x', line 1\n    train()\n{line}\n"


@pytest.mark.parametrize(
    ("code", "said", "reason_class"),
    [
        (1, raised("ValueError: wrong shape"), "error"),
        (7, "it did not work\n", "error"),
        (3, "", "error"),
        (-9, "epoch 3\n", "oom"),
        (137, "", "oom"),
        (1, raised("MemoryError"), "oom"),
        (1, raised("RuntimeError: CUDA out of memory. Tried to allocate 2 GiB"), "oom"),
        (
            1,
            raised("tensorflow.python.framework.errors_impl.ResourceExhaustedError: OOM when allocating"),
            "oom",
        ),
        (
            -6,
            "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n",
            "oom",
        ),
        (1, raised("KeyError: 1", before="allocator ran out of memory, which is not a failure"), "error"),
        (1, raised("ValueError: loss is NaN"), "nan"),
        (1, raised("nas_hpc.nas.failures.NotFinite: the loss"), "nan"),
        (1, "ERROR: non-finite loss, giving up\n", "nan"),
        (1, raised("KeyError: 'x'", before="epoch 3: loss nan"), "error"),
        (1, raised("ImportError: cannot import banana"), "error"),
        (1, raised("FileNotFoundError: [Errno 2] No such file: '/data/inf/nan.csv'"), "error"),
        (1, raised("ValueError: Input contains NaN, infinity or a value too large"), "nan"),
        (1, raised("ValueError: the loss is NaN").replace("\n", "\n[rank0]: "), "nan"),
        (1, raised("nas_hpc.trial.reports.UnknownMetric: the search waits"), "metric"),
    ],
)
def test_the_last_exception_decides_the_class(code: int, said: str, reason_class: str) -> None:
    ended = why(code, said)
    assert ended.reason_class == reason_class
    assert ended.status == ("failed_with_nan_error" if reason_class == "nan" else "failed")
    assert ended.reason
    assert "\n" not in ended.reason


def test_the_reason_is_the_exception_with_the_end_or_else_the_last_line() -> None:
    assert why(1, raised("ValueError: a\n  b")).reason == "ValueError: a (exit code 1)"
    assert why(2, "usage: x\nx: error: no such flag\n\n").reason == "x: error: no such flag (exit code 2)"
    assert why(-11, "").reason == describe(-11) == "killed by signal 11 (SIGSEGV)"
    assert len(why(1, raised("ValueError: " + "x" * 5000)).reason) < 400
    ranks = raised("ValueError: a").replace("\n", "\n[rank1]: ")
    assert why(1, ranks).reason == "ValueError: a (exit code 1)"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    ended = Ended("success", reward=0.5, step=3, return_code=0, start=1.0, end=2.0)
    write_status(tmp_path, ended)
    assert read_status(tmp_path) == ended
    write_status(tmp_path, failed("oom", "no room"))
    assert read_status(tmp_path) == failed("oom", "no room")


@pytest.mark.parametrize(
    ("content", "reason_class"),
    [
        ('{"job_status": "success"}', ""),
        ('{"job_status": "failed"}', "error"),
        ('{"job_status": "failed_with_nan_error"}', "nan"),
        ('{"job_status": "failed", "reward": 1%s, "start": "x"}' % ("0" * 400), "error"),
        ('{"job_status": "running"}', None),
        ('{"job_status": "fai', None),
        ("[1]", None),
        ("", None),
    ],
)
def test_the_file_of_another_program_is_read_and_a_torn_one_is_none(
    tmp_path: Path, content: str, reason_class: str | None
) -> None:
    (tmp_path / "job_status.json").write_text(content)
    found = read_status(tmp_path)
    assert (found.reason_class if found else None) == reason_class
