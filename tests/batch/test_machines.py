"""Machines: which files there are, which one is chosen and why, what is wrong with a file, its settings."""

from __future__ import annotations

import fnmatch
import itertools
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from nas_hpc.batch.machine_file import _MACHINE, _QUEUE, _STEP, SYSTEMS, parse_machine, read_machine
from nas_hpc.batch.machines import (
    PACKAGED,
    choose,
    folders,
    layer,
    machine_files,
    machines,
)
from nas_hpc.config import HELP, Setting, load_settings
from nas_hpc.errors import ConfigError, WrongCall
from nas_hpc.site import Site

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = ["aurora", "local", "perlmutter", "perlmutter-cpu", "polaris", "slurm", "theta"]
NOTHING = {"PATH": "/nonexistent"}
UNSET = Setting("")


def write(folder: Path, name: str, text: str = 'system = "local"\n') -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


# -- the files of the package ------------------------------------------------------------------------
def test_the_package_has_the_machines_of_the_documents_and_each_is_right() -> None:
    found = machines(None, NOTHING)
    assert [machine.name for machine in found] == NAMES
    for machine in found:
        assert machine.title
        assert machine.system in SYSTEMS
        assert machine.origin == str(PACKAGED / f"{machine.name}.toml")
        load_settings({}, machine_values=machine.settings, machine_file=machine.origin)
        if machine.queues:
            assert re.search(r"20\d\d", machine.as_of), "queues are facts of a time"
            assert machine.find_queue(machine.queue)
            assert machine.project_required


def test_the_queues_of_theta_are_those_of_its_guide() -> None:
    theta = read_machine(PACKAGED / "theta.toml")
    default = theta.find_queue("default")
    assert default is not None
    assert (default.min_nodes, default.max_nodes, default.max_queued) == (128, 4392, 20)
    assert [(step.nodes, step.min_minutes, step.max_minutes / 60) for step in default.steps] == [
        (128, 30, 3),
        (256, 30, 6),
        (384, 30, 9),
        (640, 30, 12),
        (802, 30, 24),
    ]
    for name in ("debug-cache-quad", "debug-flat-quad"):
        debug = theta.find_queue(name)
        assert debug is not None
        assert (debug.max_nodes, debug.max_minutes, debug.max_queued) == (8, 60, 1)
    assert (theta.cores, theta.threads_per_core, theta.starts_on) == (64, 4, "head")
    assert theta.settings == {"mpi_mode_packing": 1, "concurrent_starts": 1000}


# -- which one is chosen -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("host", "environ", "name"),
    [
        ("thetalogin4", {}, "theta"),
        ("thetamom2", {}, "theta"),
        ("ThetaLogin4.tmi.alcf.anl.gov", {}, "theta"),
        ("polaris-login-02", {}, "polaris"),
        ("polaris-login-02.hsn.cm.polaris.alcf.anl.gov", {}, "polaris"),
        ("x3005c0s1b0n0", {}, "polaris"),
        ("x3209c0s37b1n0.hsn.cm.polaris.alcf.anl.gov", {}, "polaris"),
        ("aurora-uan-0009", {}, "aurora"),
        ("x4502c1s0b0n0.hostmgmt2502.cm.aurora.alcf.anl.gov", {}, "aurora"),
        ("x9000c1s0b0n0", {"PBS_JOBID": "12.aurora-pbs-0001.hostmgmt.cm.aurora.alcf.anl.gov"}, "aurora"),
        ("x9000c1s0b0n0", {"PBS_JOBID": "12.polaris-pbs-01"}, "polaris"),
        ("login07", {"NERSC_HOST": "perlmutter"}, "perlmutter"),
        ("nid001234", {"SLURM_CLUSTER_NAME": "perlmutter"}, "perlmutter"),
        ("login07", {"NERSC_HOST": "cori"}, "local"),
        ("login07", {"NERSC_HOST": ""}, "local"),
        ("thetalogi", {}, "local"),
        ("mythetalogin4", {}, "local"),
        ("laptop", {}, "local"),
        ("", {}, "local"),
    ],
)
def test_a_host_belongs_to_the_machine_that_names_it_or_a_variable(
    host: str, environ: dict[str, str], name: str
) -> None:
    choice = choose(UNSET, None, {**NOTHING, **environ}, host)
    assert choice.machine.name == name
    assert choice.why


def test_an_unknown_host_with_sbatch_is_a_cluster_with_slurm(tmp_path: Path) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\n")
    sbatch.chmod(0o755)
    environ = {"PATH": str(tmp_path)}
    assert choose(UNSET, None, environ, "login1").machine.name == "slurm"
    assert choose(UNSET, None, environ, "thetalogin1").machine.name == "theta"
    sbatch.chmod(0o644)
    assert choose(UNSET, None, environ, "login1").machine.name == "local"


def test_a_name_decides_whatever_the_host_is_and_the_reason_says_where_it_comes_from() -> None:
    choice = choose(Setting("aurora", "flag --machine"), None, NOTHING, "thetalogin4")
    assert choice.machine.name == "aurora"
    assert choice.why == "by flag --machine"


def test_a_name_decides_without_a_look_at_any_other_file(tmp_path: Path) -> None:
    write(tmp_path / "machines", "broken", "hosts = [")
    assert choose(Setting("local"), tmp_path, NOTHING, "x").machine.name == "local"
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        machines(Site(tmp_path), NOTHING)


@pytest.mark.parametrize(
    "lists",
    [
        'hosts = ["node*"]',
        "hosts = ['node*']",
        'hosts = [\n    "a*", # "b*"]\n    "node*",\n]',
        'hosts = ["x[0-9]", "node[1-3]"]',
        '"hosts" = ["node*"]',
        'hosts = ["\\u006eode*"]',
        "hosts = ['''node*''']",
        'variables = ["SOME_CLUSTER=my*"]',
        'hosts = []\nvariables = ["OTHER=x", "SOME_CLUSTER=mycluster"]',
    ],
)
def test_lists_are_found_however_they_are_written(tmp_path: Path, lists: str) -> None:
    write(tmp_path / "machines", "mine", f'system = "pbs"\n{lists}\n')
    environ = {**NOTHING, "SOME_CLUSTER": "mycluster"}
    assert choose(UNSET, tmp_path, environ, "node3").machine.name == "mine"


def test_a_broken_file_is_no_trouble_where_it_is_not_asked_for_and_is_named_where_it_is(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "machines", "mine", 'system = "nqs"\nhosts = ["node*"]\n')
    assert choose(UNSET, tmp_path, NOTHING, "laptop").machine.name == "local"
    with pytest.raises(ConfigError, match=re.escape(f"{path}: system is 'nqs'; it has to be one of cobalt")):
        choose(UNSET, tmp_path, NOTHING, "node1")


def test_an_unknown_name_is_told_with_those_there_are_and_where_a_new_one_goes(tmp_path: Path) -> None:
    with pytest.raises(WrongCall) as caught:
        choose(Setting("tetha", "environment NAS_HPC_MACHINE"), tmp_path, NOTHING)
    message = str(caught.value)
    assert "machine 'tetha' (environment NAS_HPC_MACHINE)" in message
    assert "did you mean theta?" in message
    assert ", ".join(NAMES) in message
    assert str(tmp_path / "machines" / "tetha.toml") in message
    with pytest.raises(WrongCall, match=r"\.config/nas-hpc/machines"):
        choose(Setting("zzz"), None, NOTHING)


# -- whose file goes first ---------------------------------------------------------------------------
def test_the_files_of_the_site_go_before_the_users_and_those_before_the_packages(tmp_path: Path) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    environ = {**NOTHING, "HOME": str(home)}
    assert machine_files(site, environ)["theta"] == PACKAGED / "theta.toml"
    users = write(home / ".config" / "nas-hpc" / "machines", "theta")
    assert machine_files(site, environ)["theta"] == users
    of_site = write(site / "machines", "theta")
    assert machine_files(site, environ)["theta"] == of_site
    assert machine_files(None, environ)["theta"] == users
    assert [machine.name for machine in machines(Site(site), environ)] == NAMES


def test_a_host_in_a_file_of_ones_own_goes_before_that_in_the_package(tmp_path: Path) -> None:
    write(tmp_path / "machines", "zeta", 'system = "local"\nhosts = ["theta*"]\n')
    assert choose(UNSET, tmp_path, NOTHING, "thetalogin1").machine.name == "zeta"


def test_the_users_folder_is_where_xdg_has_it_or_below_home() -> None:
    below_home = Path("/h/.config/nas-hpc/machines")
    assert folders(None, {"HOME": "/h"}) == [below_home, PACKAGED]
    assert folders(None, {"HOME": "/h", "XDG_CONFIG_HOME": "/c"})[0] == Path("/c/nas-hpc/machines")
    assert folders(None, {"HOME": "/h", "XDG_CONFIG_HOME": ""})[0] == below_home
    assert folders(None, {"HOME": "/h", "XDG_CONFIG_HOME": "relative"})[0] == below_home
    assert folders(None, {"XDG_CONFIG_HOME": "/c"})[0] == Path("/c/nas-hpc/machines")
    for environ in ({}, {"HOME": ""}, {"HOME": "relative"}):
        assert folders(None, environ) == [PACKAGED]


def test_what_is_no_file_of_a_machine_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "machines"
    write(folder, ".hidden")
    (folder / "notes.txt").write_text("x")
    (folder / "mine.toml~").write_text("x")
    assert sorted(machine_files(tmp_path, NOTHING)) == NAMES


# -- what a file says --------------------------------------------------------------------------------
WHOLE: dict[str, Any] = {
    "title": "Mine",
    "as_of": "2026",
    "system": "slurm",
    "hosts": ["mine*"],
    "variables": ["CLUSTER=mine"],
    "project_required": True,
    "queue": "short",
    "queue_flag": "--qos",
    "attrs": ["constraint=gpu"],
    "flags": ["--exclusive"],
    "environment": "module load python\n",
    "cores": 32,
    "threads_per_core": 2,
    "gpus": 4,
    "starts_on": "first",
    "shared_filesystem": "yes",
    "settings": {"interface": "hsn0"},
    "queues": [
        {
            "name": "short",
            "description": "short",
            "min_nodes": 1,
            "max_nodes": 4,
            "min_minutes": 5,
            "max_minutes": 60,
            "max_queued": 2,
            "steps": [{"nodes": 2, "max_minutes": 30, "min_minutes": 10}],
        }
    ],
}


def test_every_key_of_a_file_reaches_the_machine() -> None:
    machine = parse_machine(WHOLE, "mine", "/f/mine.toml")
    assert machine.name == "mine"
    assert machine.origin == "/f/mine.toml"
    for key, value in WHOLE.items():
        if key != "queues":
            assert getattr(machine, key) == (tuple(value) if isinstance(value, list) else value)
    (queue,) = machine.queues
    for key, value in WHOLE["queues"][0].items():
        if key != "steps":
            assert getattr(queue, key) == value
    (step,) = queue.steps
    assert (step.nodes, step.max_minutes, step.min_minutes) == (2, 30, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": None}, "f: system is missing; it has to be one of cobalt, pbs, slurm, local"),
        ({"system": "sge"}, "f: system is 'sge'; it has to be one of cobalt, pbs, slurm, local"),
        ({"quues": []}, "f: unknown key 'quues'; did you mean 'queues'?"),
        ({"hosts": "mine*"}, "f: hosts is 'mine*'; it has to be a list of words"),
        ({"hosts": ["a b"]}, "f: hosts is ['a b']; it has to be a list of words"),
        ({"variables": ["CLUSTER"]}, "f: variables is ['CLUSTER']; it has to be a list of \"name=value\""),
        ({"attrs": ["a=b c"]}, "f: attrs is ['a=b c']; it has to be a list of"),
        ({"cores": -1}, "f: cores is -1; it has to be a whole number, 0 (not known) or more"),
        ({"cores": True}, "f: cores is True; it has to be a whole number"),
        ({"cores": 1.5}, "f: cores is 1.5; it has to be a whole number"),
        ({"threads_per_core": 0}, "f: threads_per_core is 0; it has to be a whole number, 1 or more"),
        ({"project_required": "yes"}, "f: project_required is 'yes'; it has to be true or false"),
        ({"queue_flag": "qos"}, "f: queue_flag is 'qos'; it has to be a flag, such as \"--qos\""),
        ({"starts_on": "login"}, 'f: starts_on is \'login\'; it has to be "first" or "head"'),
        ({"settings": []}, "f: settings is []; it has to be a table: [settings]"),
        ({"settings": {"machine": "x"}}, "f: [settings] has machine; that is chosen before the file is read"),
        (
            {"settings": {"shared_filesystem": "yes"}},
            "f: [settings] has shared_filesystem; it is a site's own",
        ),
        ({"shared_filesystem": True}, 'f: shared_filesystem is True; it has to be "auto", "yes" or "no"'),
        ({"queues": ["a"]}, "f: queues is ['a']; it has to be a list of tables"),
        ({"queues": [{}]}, "f: queue 1: name is missing; it has to be one word"),
        ({"queues": [{"name": "a b"}]}, "f: queue 'a b': name is 'a b'; it has to be one word"),
        ({"queues": [{"name": "a", "nodes": 1}]}, "f: queue 'a': unknown key 'nodes'; did you mean"),
        ({"queues": [{"name": "a"}, {"name": "a"}]}, "f: queue 'a' stands there 2 times"),
        (
            {"queues": [{"name": "a", "min_nodes": 5, "max_nodes": 4}]},
            "f: queue 'a': min_nodes is 5 and max_nodes 4",
        ),
        (
            {"queues": [{"name": "a", "min_minutes": 5, "max_minutes": 4}]},
            "f: queue 'a': min_minutes is 5 and max_minutes 4",
        ),
        (
            {"queues": [{"name": "a", "steps": [{"nodes": 1}]}]},
            "f: queue 'a', step 1: max_minutes is missing",
        ),
        (
            {"queues": [{"name": "a", "steps": [{"nodes": n, "max_minutes": 5} for n in (4, 4)]}]},
            "f: queue 'a': steps has 4 nodes after 4; numbers of nodes have to rise",
        ),
    ],
)
def test_a_wrong_file_is_told_with_file_key_value_and_what_is_right(
    change: dict[str, Any], message: str
) -> None:
    body = {key: value for key, value in {**WHOLE, **change}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        parse_machine(body, "mine", "f")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_machine(tmp_path / "none.toml")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_machine(path)


def test_the_file_in_the_documents_is_one_and_every_key_is_told_there() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "machines.md").read_text()
    lines = text[text.index("    title =") :].splitlines()
    block = itertools.takewhile(lambda line: not line or line.startswith("    "), lines)
    body = tomllib.loads(textwrap.dedent("\n".join(block)))
    machine = parse_machine(body, "example", "f")
    assert any(fnmatch.fnmatchcase("example-login1", pattern) for pattern in machine.hosts)
    assert [queue.name for queue in machine.queues] == ["short", "long"]
    load_settings({}, machine_values=machine.settings)
    rows = "".join(line for line in text.splitlines() if line.startswith("| `"))
    for key in (*_MACHINE, *_QUEUE, *_STEP):
        assert re.search(rf"`(\[+)?{key}(\]+)?`", rows), key


# -- settings ----------------------------------------------------------------------------------------
def test_a_machines_settings_stand_between_the_built_in_ones_and_the_sites() -> None:
    machine = {"grace_s": 1.0, "stop_margin_s": 2.0, "mpi_mode_packing": 3, "lost_limit": 4}
    settings = load_settings(
        {"NAS_HPC_MPI_MODE_PACKING": "30"},
        {"lost_limit": 40},
        site_values={"settings": {"stop_margin_s": 20.0}},
        site_file="/s/site.toml",
        machine_values=machine,
        machine_file="machine mine (/m/mine.toml)",
    )
    assert (settings.grace_s.value, settings.grace_s.origin) == (1.0, "machine mine (/m/mine.toml)")
    assert (settings.stop_margin_s.value, settings.stop_margin_s.origin) == (20.0, "/s/site.toml")
    assert settings.mpi_mode_packing.value == 30
    assert (settings.lost_limit.value, settings.lost_limit.origin) == (40, "flag --lost-limit")


def test_a_wrong_setting_of_a_machine_is_told_with_its_file() -> None:
    with pytest.raises(ConfigError, match=r"^machine m \(/m\.toml\): grace_s is -1\.0; it has to be"):
        load_settings({}, machine_values={"grace_s": -1.0}, machine_file="machine m (/m.toml)")
    with pytest.raises(ConfigError, match=r"^machine m \(/m\.toml\): unknown setting 'grace'"):
        load_settings({}, machine_values={"grace": 1.0}, machine_file="machine m (/m.toml)")


def test_what_is_true_of_compute_nodes_holds_inside_batch_jobs_alone() -> None:
    theta = read_machine(PACKAGED / "theta.toml")
    assert layer(theta, {}) == {"mpi_mode_packing": 1, "concurrent_starts": 1000}
    assert layer(theta, {"COBALT_JOBID": "7"})["cores_per_node"] == 64
    mine = parse_machine({**WHOLE, "settings": {"interface": "hsn0", "grace_s": 5.0}}, "mine", "f")
    assert layer(mine, {}) == {"grace_s": 5.0}
    for variable in ("PBS_JOBID", "SLURM_JOB_ID", "SLURM_JOBID"):
        assert layer(mine, {variable: "1"}) == {"interface": "hsn0", "grace_s": 5.0}
    assert set(layer(theta, {"COBALT_JOBID": "7"})) <= set(HELP)
