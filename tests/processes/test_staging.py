"""Environments copied to the node's own disk: made once, working, and the original where that fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.processes import staging
from nas_hpc.processes.staging import Staged, StagingFailed, original, relocate, stage
from nas_hpc.states import Outcome
from tests.processes.bench import Bench, eventually, go
from tests.support import wait_until

MODULE = "WHERE = __file__\n"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real virtual environment with one module in it."""
    path = tmp_path_factory.mktemp("envs") / "template"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(path)], check=True, timeout=60)
    return path


@pytest.fixture
def environment(template: Path, tmp_path: Path) -> Path:
    """One of the test's own, where ``python -m venv`` would have made it."""
    path = tmp_path / "project" / "env"
    shutil.copytree(template, path, symlinks=True)
    activate = path / "bin" / "activate"
    activate.write_text(activate.read_text().replace(str(template), str(path)))
    [packages] = path.glob("lib/python*/site-packages")
    (packages / "staged_module.py").write_text(MODULE)
    return path


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The node's own disk."""
    path = tmp_path / "node"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return path


def copies(node: Path) -> list[str]:
    """What lies there of environments, finished or not, without locks."""
    base = node / f"nas-hpc-{os.getuid()}"
    return sorted(p.name for p in base.iterdir() if "env-" in p.name and p.is_dir()) if base.exists() else []


def ask(python: str, code: str) -> str:
    """What a Python prints."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python, "-c", code], env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@contextlib.contextmanager
def staged(source: Path, node: Path) -> Iterator[Staged]:
    found = stage(str(source), {"TMPDIR": str(node)})
    try:
        yield found
    finally:
        found.close()


def test_the_copys_interpreter_uses_the_copys_packages(environment: Path, node: Path) -> None:
    with staged(environment, node) as found:
        python = relocate(f"{environment}/bin/python", found.mapping)
        assert python.startswith(str(node))
        shutil.rmtree(environment)  # nothing of it is needed any more
        local = relocate(str(environment), found.mapping)
        assert ask(python, "import sys; print(sys.prefix)") == local
        assert ask(python, "import staged_module; print(staged_module.WHERE)").startswith(f"{local}/lib/")


def test_compiled_modules_of_the_copy_are_current(environment: Path, node: Path) -> None:
    python = str(environment / "bin" / "python")
    ask(python, "import staged_module")
    [compiled] = environment.glob("lib/python*/site-packages/__pycache__/staged_module*.pyc")
    with staged(environment, node) as found:
        copy = Path(relocate(str(compiled), found.mapping))
        before = copy.stat().st_mtime_ns
        ask(relocate(python, found.mapping), "import staged_module")
        assert copy.stat().st_mtime_ns == before, "it was compiled anew"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize("packed", ["the directory", "what is in it"])
def test_an_archive_stands_for_the_environment_that_was_packed(
    environment: Path, node: Path, tmp_path: Path, suffix: str, packed: str
) -> None:
    if suffix == ".tar.zst" and shutil.which("zstd") is None:
        pytest.skip("needs the program zstd")
    plain = tmp_path / "packed.tar"
    with tarfile.open(plain, "w:gz" if suffix == ".tar.gz" else "w") as archive:
        archive.add(environment, arcname="env" if packed == "the directory" else ".")
    path = plain.rename(tmp_path / f"packed{suffix.replace('.zst', '')}")
    if suffix == ".tar.zst":
        subprocess.run(["zstd", "-q", "--rm", str(path)], check=True, timeout=60)
        path = tmp_path / "packed.tar.zst"
    with staged(path, node) as found:
        python = relocate(f"{environment}/bin/python", found.mapping)
        assert python.startswith(str(node)), found.mapping
        assert relocate(f"{tmp_path}/packed/bin/python", found.mapping) == python
        assert ask(python, "import staged_module; print(staged_module.WHERE)").startswith(str(node))


@pytest.mark.parametrize("content", [b"", b"no archive", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_archive_is_told_and_leaves_nothing(
    environment: Path, node: Path, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "env.tar.gz"
    if content is None:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(environment, arcname="env")
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(StagingFailed, match="is used where it is"):
        stage(str(path), {"TMPDIR": str(node)})
    assert copies(node) == []


def test_an_archive_writes_nothing_outside(environment: Path, node: Path, tmp_path: Path) -> None:
    path = tmp_path / "env.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(environment, arcname=".")
        archive.add(environment / "pyvenv.cfg", arcname="../../../outside")
    with pytest.raises(StagingFailed):
        stage(str(path), {"TMPDIR": str(node)})
    assert not list(tmp_path.rglob("outside"))
    assert copies(node) == []


@pytest.mark.parametrize(
    ("what", "words"),
    [("missing", "no such environment"), ("empty", "no bin/python"), ("file", "neither a directory nor"),
     ("broken", "bin/python does not")],
)  # fmt: skip
def test_what_is_no_environment_is_named(tmp_path: Path, node: Path, what: str, words: str) -> None:
    path = tmp_path / what
    if what == "empty":
        (path / "bin").mkdir(parents=True)
    elif what == "file":
        path.write_text("x")
    elif what == "broken":
        (path / "bin").mkdir(parents=True)
        (path / "bin" / "python").symlink_to("/no/such/python")
    with pytest.raises(StagingFailed) as failed:
        stage(str(path), {"TMPDIR": str(node)})
    assert words in str(failed.value)
    assert str(path) in str(failed.value)
    assert "\n" not in str(failed.value)


COPIER = """
import os, shutil, sys, time
from nas_hpc.processes import staging
real = shutil.copyfile
def slow(source, target):
    with open(sys.argv[2], "a") as log:
        print(os.getpid(), file=log)
    time.sleep(float(sys.argv[3]))
    return real(source, target)
shutil.copyfile = slow
found = staging.stage(sys.argv[1], os.environ)
print(staging.relocate(sys.argv[1] + "/bin/python", found.mapping), flush=True)
sys.stdin.read()
"""


def copier(environment: Path, log: Path, checkout: Path, pause_s: float = 0.01) -> subprocess.Popen[str]:
    """A process that copies slowly, says where, and holds the copy until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", COPIER, str(environment), str(log), str(pause_s)],
        cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_at_once_copy_once(
    environment: Path, node: Path, tmp_path: Path, checkout: Path
) -> None:
    log = tmp_path / "log"
    both = [copier(environment, log, checkout) for _ in range(2)]
    said = [process.stdout.readline().strip() for process in both if process.stdout is not None]
    assert said[0] == said[1]
    assert said[0].startswith(str(node))
    assert len(set(log.read_text().split())) == 1, "two processes copied"
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(copies(node)) == 1


def test_one_killed_in_the_middle_leaves_the_work_to_the_next(
    environment: Path, node: Path, tmp_path: Path, checkout: Path
) -> None:
    log = tmp_path / "log"
    first = copier(environment, log, checkout, pause_s=1.0)
    wait_until(lambda: log.exists() and len(log.read_text().split()) > 1, 60, "some files to be copied")
    first.kill()
    first.communicate()
    assert [name for name in copies(node) if name.startswith(".env-")]
    with staged(environment, node) as found:
        assert Path(relocate(f"{environment}/bin/python", found.mapping)).exists()
        assert len(copies(node)) == 1
        assert not copies(node)[0].startswith(".")


def test_a_stopped_copy_leaves_nothing(environment: Path, node: Path) -> None:
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 5

    with pytest.raises(StagingFailed, match="stopped"):
        stage(str(environment), {"TMPDIR": str(node)}, stopped)
    assert copies(node) == []


def test_a_changed_environment_is_copied_anew_and_the_old_copy_goes_when_nobody_uses_it(
    environment: Path, node: Path
) -> None:
    environ = {"TMPDIR": str(node)}
    first = stage(str(environment), environ)
    again = stage(str(environment), environ)
    assert again.mapping == first.mapping
    again.close()
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "another.py").write_text("x = 1\n")
    second = stage(str(environment), environ)
    assert second.mapping != first.mapping
    assert len(copies(node)) == 2, "the first is in use"
    python = relocate(f"{environment}/bin/python", first.mapping)
    assert ask(python, "import sys; print(1)") == "1"
    first.close()
    (packages / "more.py").write_text("x = 1\n")
    third = stage(str(environment), environ)
    assert len(copies(node)) == 2
    assert not os.path.exists(python)
    second.close()
    third.close()


def test_a_read_only_environment_can_be_copied_and_its_copy_removed(environment: Path, node: Path) -> None:
    for path in [environment, *(p for p in environment.rglob("*") if p.is_dir())]:
        path.chmod(0o555)
    try:
        with staged(environment, node) as found:
            [root] = set(found.mapping.values())
            assert os.stat(root).st_mode & 0o700 == 0o700
    finally:
        for path in [environment, *(p for p in environment.rglob("*") if p.is_dir())]:
            path.chmod(0o755)
    (environment / "pyvenv.cfg").touch()
    with staged(environment, node):
        assert not os.path.exists(root)


@pytest.mark.needs_root
@pytest.mark.needs_program("mount")
def test_on_a_full_disk_the_original_is_used_and_nothing_is_left(environment: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "large.bin").write_bytes(b"x" * (2 << 20))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], check=True, timeout=60)
    try:
        with pytest.raises(StagingFailed, match="No space left on device"):
            stage(str(environment), {"TMPDIR": str(disk)})
        assert copies(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=60)


# -- paths -------------------------------------------------------------------------------------------------

NAMES = st.lists(st.text("ab.", min_size=1, max_size=3).filter(lambda s: s.strip(".")), max_size=3)


@given(NAMES, NAMES)
def test_only_what_lies_below_the_prefix_is_relocated(prefix: list[str], path: list[str]) -> None:
    original_path = "/" + "/".join(["p", *path])
    root = "/" + "/".join(["p", *prefix])
    moved = relocate(original_path, {root: "/local/env"})
    if path[: len(prefix)] == prefix:
        assert moved == "/".join(["/local/env", *path[len(prefix) :]])
        assert original(moved, {staging.STAGED_VARIABLE: f"/local/env={root}"}) == original_path
    else:
        assert moved == original_path


def test_outside_of_a_copy_paths_are_what_they_are() -> None:
    assert original("/x/bin/python", {}) == "/x/bin/python"


# -- an agent ----------------------------------------------------------------------------------------------

WHERE = """
    import os, sys
    def run(config):
        import staged_module
        return {"objective": 1.0, "metadata": {"prefix": sys.prefix, "module": staged_module.WHERE,
                "path": sys.path, "staged": os.environ.get("NAS_HPC_STAGED")}}
"""


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
def test_evaluations_run_in_the_copy_and_wait_for_it(
    tmp_path: Path, environment: Path, node: Path, warm: bool
) -> None:
    python = str(environment / "bin" / "python")

    async def scenario() -> None:
        async with Bench(tmp_path, stage_environment=str(environment)) as bench:
            bench.module("subject", WHERE)
            person = bench.program(python, "-c", "import sys; print(sys.prefix)")
            order = bench.call("subject.run", warm=warm, interpreter=python)
            stopped = bench.call("subject.run", warm=warm, interpreter=python)
            for one in (person, order, stopped):
                bench.agent.start(one)
            bench.agent.stop(stopped.key, Outcome.KILLED, "a person said so")
            assert (await bench.end_of(stopped.key)).result.outcome is Outcome.KILLED
            seen = (await bench.end_of(order.key)).result
            assert seen.outcome is Outcome.OK, seen
            assert seen.metadata["prefix"].startswith(str(node))
            assert seen.metadata["module"].startswith(str(node))
            assert seen.metadata["staged"] == f"{seen.metadata['prefix']}={environment}"
            await bench.end_of(person.key)
            output = (Path(person.directory) / "task1.out").read_text()
            assert output.strip() == str(environment), "a person's job runs where he said"
            program = bench.program(
                python, "-c", "import sys; print('DH-OUTPUT:', len(sys.prefix))", expects_result=True
            )
            assert (await bench.run(program)).result.objective == len(seen.metadata["prefix"])
            assert bench.notes == []

    go(scenario())


def test_without_a_copy_evaluations_run_where_the_environment_is(
    tmp_path: Path, environment: Path, node: Path
) -> None:
    python = str(environment / "bin" / "python")

    async def scenario() -> None:
        async with Bench(tmp_path, stage_environment=str(tmp_path / "no-such-env")) as bench:
            bench.module("subject", WHERE)
            ended = await bench.run(bench.call("subject.run", interpreter=python))
            assert ended.result.metadata["prefix"] == str(environment)
            assert ended.result.metadata["staged"] is None
            [note] = bench.notes
            assert note.startswith(f"the environment {tmp_path}/no-such-env is used where it is")

    go(scenario())


def test_an_agent_that_closes_does_not_wait_for_the_copy(
    tmp_path: Path, environment: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()
    real = shutil.copyfile

    copied = 0

    def slow(source: str, target: str) -> str:
        nonlocal copied
        copied += 1
        began.set()
        time.sleep(0.05)
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", slow)
    [packages] = environment.glob("lib/python*/site-packages")
    for number in range(400):
        (packages / f"m{number}.py").touch()

    async def scenario() -> None:
        async with Bench(tmp_path, stage_environment=str(environment)) as bench:
            order = bench.call("subject.run", interpreter=str(environment / "bin" / "python"))
            bench.agent.start(order)
            await eventually(began.is_set, what="the copying")

    go(scenario())
    assert copied < 400
    assert copies(node) == []
