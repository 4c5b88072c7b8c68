"""The machine of a call: --machine, its file's settings, and what the doctor finds of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest

from nas_hpc.batch.machine import Machine, Queue, Step
from nas_hpc.batch.system import QueueState
from nas_hpc.cli import check_batch
from nas_hpc.cli.check_batch import compare_queues
from nas_hpc.site import Site
from tests.cli.conftest import Run
from tests.peers.cobalt import Cobalt
from tests.peers.slurm import Slurm


@pytest.fixture(autouse=True)
def _nothing_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch system on PATH, no files of the user, no MPI program to try."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NAS_HPC_MPI", "none")
    monkeypatch.delenv("NAS_HPC_MACHINE", raising=False)


def write(site: Site, name: str, text: str) -> Path:
    path = site.path / "machines" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def program(tmp_path: Path, name: str, text: str = "exit 0") -> None:
    path = tmp_path / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def doctor(nas_hpc: Run, *words: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(nas_hpc("doctor", "--quick", "--json", *words).out)
    return body


def findings(body: dict[str, Any], name: str) -> list[tuple[str, str]]:
    return [(check["level"], check["text"]) for check in body["checks"] if check["name"] == name]


# -- settings ----------------------------------------------------------------------------------------
def test_a_machines_settings_hold_and_the_doctor_names_its_file(nas_hpc: Run, site: Site) -> None:
    body = doctor(nas_hpc, "--machine", "theta")
    shown = body["settings"]["concurrent_starts"]
    assert shown["value"] == 1000
    assert shown["origin"].startswith("machine theta (/")
    assert shown["origin"].endswith("/theta.toml)")
    assert body["settings"]["machine"] == {"value": "theta", "origin": "flag --machine"}
    assert doctor(nas_hpc)["settings"]["concurrent_starts"] == {"value": 0, "origin": "built-in"}


def test_flag_before_environment_before_site_file(
    nas_hpc: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.file.open("a") as file:
        file.write('machine = "aurora"\nconcurrent_starts = 7\n')
    assert doctor(nas_hpc)["settings"]["machine"] == {"value": "aurora", "origin": str(site.file)}
    monkeypatch.setenv("NAS_HPC_MACHINE", "theta")
    body = doctor(nas_hpc)
    assert body["settings"]["machine"]["origin"] == "environment NAS_HPC_MACHINE"
    assert body["settings"]["concurrent_starts"] == {"value": 7, "origin": str(site.file)}
    assert doctor(nas_hpc, "--machine", "polaris")["settings"]["machine"]["value"] == "polaris"


def test_an_unknown_machine_ends_a_command_and_is_told_with_those_there_are(nas_hpc: Run, site: Site) -> None:
    called = nas_hpc("launcher", "--machine", "tetha")
    assert called.code == 2
    assert "machine 'tetha' (flag --machine) has no file; did you mean theta?" in called.err
    assert str(site.path / "machines" / "tetha.toml") in called.err
    assert len(called.err.splitlines()) == 1


def test_an_empty_machine_is_refused_as_an_empty_site_is(nas_hpc: Run, site: Site) -> None:
    called = nas_hpc("doctor", "--quick", "--machine", " ")
    assert called.code == 2
    assert "--machine is empty; give the name of a machine" in called.err


def test_a_new_machine_is_one_file_of_the_site(nas_hpc: Run, site: Site) -> None:
    path = write(site, "mine", 'system = "local"\nvariables = ["PATH=*"]\n[settings]\ngrace_s = 3.5\n')
    body = doctor(nas_hpc)
    assert body["settings"]["grace_s"] == {"value": 3.5, "origin": f"machine mine ({path})"}
    assert findings(body, "machine")[0][1].startswith("mine, local: the environment has PATH=")
    path.write_text("system = 'local'\nvariables = ['PATH=*']\n[settings]\ngrace_s = -1\n")
    called = nas_hpc("launcher")
    assert called.code == 2
    assert f"machine mine ({path}): grace_s is -1; it has to be a number, 0 or more" in called.err


def test_that_file_systems_are_shared_is_written_into_the_sites_made_on_a_machine(
    nas_hpc: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "config" / "nas-hpc" / "machines"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text('system = "local"\nshared_filesystem = "yes"\n')
    for words, kind in ((["--machine", "mine"], "shared with other hosts"), ([], "of this host")):
        path = tmp_path / f"made{len(words)}"
        assert nas_hpc("init", str(path), *words).code == 0
        body = doctor(nas_hpc, "--site", str(path))
        assert kind in findings(body, "file system")[0][1]
        origin = str(path / "site.toml") if words else "built-in"
        assert body["settings"]["shared_filesystem"]["origin"] == origin


@pytest.mark.slow
def test_help_and_ls_read_no_file_of_a_machine_and_a_name_leads_to_one_alone(full_site: Site) -> None:
    """In a process of its own: what is imported, and what is opened, is what a user waits for."""
    code = """
        import sys
        opened = []
        sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
        from nas_hpc.cli.main import main
        main(sys.argv[1:])
        files = [path.split("/")[-1] for path in opened if path.split("/")[-2:-1] == ["machines"]]
        print(files, "nas_hpc.batch" in sys.modules, file=sys.stderr)
    """

    def said(*words: str, **environ: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *words],
            env={**os.environ, **environ}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stderr.strip()

    assert said("--help") == "[] False"
    assert said("ls", "jobs", NAS_HPC_MACHINE="theta") == "[] False"
    job = ("job", "--name", "a", "--workflow", "W", "--app", "echo")
    shown = said(*job, NAS_HPC_SITE=str(full_site.path), NAS_HPC_MACHINE="local")
    assert shown == "['local.toml'] True"


# -- the doctor --------------------------------------------------------------------------------------
def test_the_doctor_says_which_machine_it_is_and_why(
    nas_hpc: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((level, text),) = findings(doctor(nas_hpc), "machine")
    assert level == "ok"
    assert text.startswith("local, ")
    assert "is of no machine with a file" in text
    monkeypatch.setenv("NERSC_HOST", "perlmutter")
    ((level, text),) = findings(doctor(nas_hpc), "machine")
    assert text.startswith("perlmutter, ")
    assert "the environment has NERSC_HOST=perlmutter" in text
    assert "facts of 2025" in text


def test_a_batch_system_on_path_without_a_machine_is_a_warning(
    nas_hpc: Run, site: Site, tmp_path: Path
) -> None:
    program(tmp_path, "qsub")
    ((level, text),) = findings(doctor(nas_hpc), "machine")
    assert level == "warn"
    assert "qsub of PBS or Cobalt is on PATH" in text
    assert findings(doctor(nas_hpc, "--machine", "local"), "machine")[0][0] == "ok"


def test_missing_commands_are_bad_on_a_login_node_and_not_inside_a_batch_job(
    nas_hpc: Run, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = nas_hpc("doctor", "--quick", "--machine", "theta")
    assert called.code == 1
    assert "bad   batch system     cobalt: qsub, qstat, qdel not on PATH  -> load" in called.out
    monkeypatch.setenv("COBALT_JOBID", "7")
    monkeypatch.setenv("COBALT_PARTNAME", "1-3")
    (found,) = findings(doctor(nas_hpc, "--machine", "theta"), "batch system")
    assert found[0] == "ok"


def test_queues_are_held_against_those_of_the_batch_system(
    nas_hpc: Run, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cobalt(tmp_path / "cobalt") as cobalt:
        monkeypatch.setenv("PATH", str(cobalt.bin))
        body = doctor(nas_hpc, "--machine", "theta")
        ((level, text),) = findings(body, "batch system")
        assert level == "ok"
        assert f"cobalt answers ({cobalt.bin}/qsub" in text
        told = findings(body, "queues")
        assert len(told) == 1
        assert told[0][0] == "warn"
        assert "cobalt has no queue debug-flat-quad" in told[0][1]


@pytest.mark.slow
@pytest.mark.needs_slurm
def test_partitions_of_a_real_slurm_are_held_against_the_file(
    nas_hpc: Run, site: Site, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.environ[name])
    body = doctor(nas_hpc)
    assert findings(body, "machine")[0][1].startswith("slurm, ")
    assert findings(body, "batch system")[0][0] == "ok"
    assert "slurm has debug;" in findings(body, "queues")[0][1]
    queue = '[[queues]]\nname = "debug"\nmax_nodes = {}\n'
    write(site, "mine", 'system = "slurm"\n' + queue.format(4))
    assert findings(doctor(nas_hpc, "--machine", "mine"), "queues") == [("ok", "debug as told")]
    write(site, "mine", 'system = "slurm"\n' + queue.format(9) + '[[queues]]\nname = "long"\n')
    assert findings(doctor(nas_hpc, "--machine", "mine"), "queues") == [
        ("warn", "debug: max_nodes is 9 in the file, and 4 by the batch system"),
        ("warn", f"slurm has no queue long, and {site.path}/machines/mine.toml has one"),
    ]


def test_a_batch_system_that_says_nonsense_or_nothing_is_told_in_bounded_time(
    nas_hpc: Run, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("qsub", "qdel"):
        program(tmp_path, name)
    program(tmp_path, "qstat", "echo 'component error: down' >&2; exit 1")
    ((level, text),) = findings(doctor(nas_hpc, "--machine", "theta"), "batch system")
    assert level == "warn"
    assert "cobalt does not tell its queues" in text
    assert "component error: down" in text
    monkeypatch.setattr(check_batch, "ASK_S", 0.2)
    program(tmp_path, "qstat", "exec /bin/sleep 600")
    ((level, text),) = findings(doctor(nas_hpc, "--machine", "theta"), "batch system")
    assert level == "warn"
    assert "qstat did not answer within 0.2 s" in text


def test_limits_that_differ_are_named_and_the_rest_is_said_to_be_right() -> None:
    machine = Machine(
        "m",
        "pbs",
        queues=(
            Queue("a", max_nodes=8, max_minutes=60),
            Queue("b", steps=(Step(1, 60), Step(9, 120))),
            Queue("c"),
        ),
        origin="/m.toml",
    )

    def compare(*live: QueueState) -> list[tuple[str, str]]:
        return [(finding.level, finding.text) for finding in compare_queues(machine, live)]

    right = [QueueState("a", max_nodes=8, max_minutes=60), QueueState("b", max_minutes=120), QueueState("c")]
    assert compare(*right) == [("ok", "a, b, c as told")]
    assert compare(*right, QueueState("R1")) == [("ok", "a, b, c as told; pbs has others, too: R1")]
    assert compare(QueueState("a", max_nodes=4, max_minutes=90), *right[1:]) == [
        ("warn", "a: max_nodes is 8 in the file, and 4 by the batch system"),
        ("warn", "a: max_minutes is 60 in the file, and 90 by the batch system"),
    ]
    assert ("warn", "b: max_minutes is 120 in the file, and 60 by the batch system") in compare(
        right[0], QueueState("b", max_minutes=60), right[2]
    )
    assert ("warn", "c takes no batch jobs") in compare(*right[:2], QueueState("c", open=False))
    assert ("warn", "pbs has no queue c, and /m.toml has one") in compare(*right[:2])


def test_a_node_of_the_batch_job_is_held_against_the_file(
    nas_hpc: Run, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text(os.uname().nodename + "\n")
    monkeypatch.setenv("PBS_JOBID", "7.server")
    monkeypatch.setenv("PBS_NODEFILE", str(nodes))
    cores = len({min(_siblings(cpu)) for cpu in os.sched_getaffinity(0)})
    write(
        site,
        "mine",
        f"""
        system = "pbs"
        cores = {cores + 1}
        gpus = 99
        [settings]
        interface = "nosuch0"
        """,
    )
    body = doctor(nas_hpc, "--machine", "mine")
    said = [text for level, text in findings(body, "node") if level == "warn"]
    assert any(text.startswith(f"cores: {cores} on ") and f"{cores + 1} in " in text for text in said)
    assert any(text.startswith("GPUs: ") and "99 in " in text for text in said)
    ((level, text),) = findings(body, "interface")
    assert level == "bad"
    assert "there is no nosuch0 on this host" in text
    assert all(name in text for name in psutil.net_if_addrs())
    write(site, "mine", f'system = "pbs"\ncores = {cores}\n[settings]\ninterface = "lo"\n')
    body = doctor(nas_hpc, "--machine", "mine")
    assert not [text for _, text in findings(body, "node") if text.startswith("cores")]
    assert findings(body, "interface")[0][0] == "ok"


def _siblings(cpu: int) -> set[int]:
    from nas_hpc.resources.topology import threads_beside

    return set(threads_beside(cpu)) & os.sched_getaffinity(0)
