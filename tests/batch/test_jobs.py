"""The files that record batch jobs."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_hpc.batch.jobs import (
    drop_scripts,
    find_job,
    is_unknown,
    new_job,
    new_keys,
    read_job,
    read_jobs,
    read_launch,
    record_of,
    script_of,
    write_job,
    write_launch,
)
from nas_hpc.errors import SiteError, WrongCall
from nas_hpc.records import BatchJob
from nas_hpc.site import Site, create_site
from nas_hpc.states import BatchState
from tests.cli.test_disks import fill, small_disk

__all__ = ["small_disk"]
ASCII = st.text(st.characters(max_codepoint=0x2FF, exclude_characters="\0"), max_size=20)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return create_site(tmp_path / "site")


def job(key: str, id_: str = "", **more: object) -> BatchJob:
    values: dict[str, object] = {
        "system": "slurm", "machine": "m", "script": "/s", "output": "/o", "nodes": 1,
        "walltime_minutes": 5, "job_mode": "mpi", "submitted": 1.0,
    }  # fmt: skip
    return BatchJob(key=key, id=id_, **(values | more))  # type: ignore[arg-type]


def test_keys_that_are_drawn_at_once_are_different_and_their_scripts_private(site: Site) -> None:
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: new_keys(site, "W", 2), range(24)))
    keys = [key for keys in drawn for key in keys]
    assert len(set(keys)) == 48
    for key in keys:
        assert key.startswith("W-20")
        assert script_of(site, key).stat().st_mode & 0o777 == 0o700
    assert all(first.replace("-link1", "-link2") == second for first, second in drawn)


def test_a_key_that_is_not_reserved_leaves_no_file(site: Site) -> None:
    [key] = new_keys(site, "", reserve=False)
    assert key.startswith("all-")
    assert os.listdir(site.qsubmit) == []


def test_a_directory_that_takes_no_scripts_is_told(site: Site) -> None:
    site.qsubmit.rmdir()
    site.qsubmit.write_text("a file")
    with pytest.raises(SiteError, match="Not a directory; nothing was submitted"):
        new_keys(site, "W")


def test_scripts_without_a_record_are_dropped_and_others_kept(site: Site) -> None:
    keys = new_keys(site, "W", 2)
    write_job(site, job(keys[0]))
    drop_scripts(site, keys)
    assert script_of(site, keys[0]).exists()
    assert not script_of(site, keys[1]).exists()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    texts=st.lists(ASCII, min_size=4, max_size=4),
    state=st.sampled_from(BatchState),
    dependencies=st.lists(ASCII, max_size=3).map(tuple),
    code=st.none() | st.integers(0, 255),
)
def test_a_record_is_read_as_it_was_written(
    site: Site, texts: list[str], state: BatchState, dependencies: tuple[str, ...], code: int | None
) -> None:
    reason, queue, project, id_ = texts
    written = job(
        "K-1", id_, reason=reason, queue=queue, project=project, state=state, dependencies=dependencies,
        exit_code=code,
    )  # fmt: skip
    write_job(site, written)
    assert read_job(site, "K-1") == written
    assert record_of(site, "K-1").stat().st_mode & 0o777 == 0o600


def test_records_come_oldest_first_and_what_is_none_is_passed_over_with_a_note(site: Site) -> None:
    write_job(site, job("A", submitted=2.0))
    write_job(site, job("B", submitted=1.0))
    write_launch(site, "A", host="h", pid=1, boot_id="b", started=1.0)
    for name, text in (
        ("torn", '{"key": "torn"'),
        ("other", '{"key": "A"}'),
        ("list", "[]"),
        ("few", '{"key":"few"}'),
    ):
        (site.qsubmit / f"{name}.json").write_text(text)
    (site.qsubmit / "A.local.json").write_text("{}")
    notes: list[str] = []
    assert [found.key for found in read_jobs(site, notes.append)] == ["B", "A"]
    assert len(notes) == 4
    assert any("torn.json is no record" in line for line in notes)


def test_a_field_of_a_later_version_does_not_make_a_record_unreadable(site: Site) -> None:
    write_job(site, job("A", "7"))
    record = json.loads(record_of(site, "A").read_text())
    record_of(site, "A").write_text(json.dumps(record | {"later": 1}))
    assert read_job(site, "A") == job("A", "7")


def test_a_batch_job_is_found_by_its_id_its_number_and_its_key(site: Site) -> None:
    write_job(site, job("A", "12345.pbs-01"))
    write_job(site, job("B", "7"))
    write_job(site, job("C", "7", submitted=9.0))
    for word, key in (("12345", "A"), ("12345.pbs-01", "A"), ("batch:12345", "A"), ("B", "B"), ("7", "C")):
        found = find_job(site, word)
        assert found is not None
        assert found.key == key
    assert [find_job(site, word) for word in ("1", "", "batch:", "pbs-01")] == [None] * 4


def test_what_a_launcher_says_at_its_end_is_added_to_what_it_said_at_its_start(site: Site) -> None:
    write_launch(site, "K", host="h", pid=3, boot_id="b", started=5.0)
    write_launch(site, "K", ended=6.0, exit_code=1, left=2)
    launch = read_launch(site, "K")
    assert launch is not None
    assert (launch.host, launch.pid, launch.ended, launch.exit_code, launch.left) == ("h", 3, 6.0, 1, 2)
    with pytest.raises(WrongCall, match="is no key"):
        write_launch(site, "../K", host="h", pid=3, boot_id="b", started=5.0)


def test_only_a_record_that_waits_long_for_its_id_is_unknown() -> None:
    now = time.time()
    assert not is_unknown(job("A", submitted=now), now)
    assert is_unknown(job("A", submitted=now - 61), now)
    assert not is_unknown(job("A", "7", submitted=now - 61, state=BatchState.QUEUED), now)


@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_the_id_is_recorded_on_a_disk_that_became_full(small_disk: Path) -> None:
    site = create_site(small_disk / "site")
    made = new_job(site, **{
        name: value for name, value in vars_of(job("x")).items() if name not in ("key", "script", "output")
    })  # fmt: skip
    write_job(site, made)
    fill(small_disk)
    with pytest.raises(OSError, match="No space"):
        write_job(site, job("other"))
    longer = job(made.key, "123456789.a-long-name-of-a-server", reason="r" * 300)
    write_job(site, longer)
    assert read_job(site, made.key) == longer


def vars_of(one: BatchJob) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__slots__}
