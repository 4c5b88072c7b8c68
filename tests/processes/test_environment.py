"""Environments: what is recorded of a submitter's, and what a job's process gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.processes.environment import THREAD_VARIABLES, for_job, recordable


@pytest.mark.parametrize(
    "name",
    [
        "GITHUB_TOKEN", "MY_SECRET", "PGPASSWORD", "DB_PASSWD", "AWS_CREDENTIALS_FILE", "PRIVATE_THING",
        "WANDB_API_KEY", "OPENAI_APIKEY", "AWS_ACCESS_KEY_ID", "HTTP_AUTH", "COOKIE_JAR", "my_token",
        "SSH_AUTH_SOCK", "SSH_CLIENT", "GPG_AGENT_INFO", "PMI_RANK", "PMIX_ID", "OMPI_COMM_WORLD_RANK",
        "PRTE_X", "PALS_RANKID", "HYDI_CONTROL_FD", "ALPS_APP_PE", "SLURM_JOB_ID", "SLURMD_NODENAME",
        "COBALT_JOBID", "PBS_NODEFILE", "PWD", "OLDPWD", "SHLVL", "_", "TERM", "TERM_PROGRAM", "DISPLAY",
        "XDG_SESSION_ID", "DBUS_SESSION_BUS_ADDRESS", "NAS_HPC_ENDPOINT", "BALSAM_JOB_ID",
    ],
)  # fmt: skip
def test_secrets_and_what_belongs_to_another_job_or_shell_are_not_recorded(name: str) -> None:
    assert recordable({name: "value", "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "HOME",
        "LANG",
        "OMP_PLACES",
        "XDG_CACHE_HOME",
    ],
)
def test_what_a_program_needs_is_recorded(name: str) -> None:
    assert recordable({name: "value"}) == {name: "value"}


def test_names_and_values_that_are_no_text_are_left_out() -> None:
    assert recordable({"BAD": "\udcff", "B\udc80": "x", "GOOD": "é"}) == {"GOOD": "é"}


def test_a_job_gets_the_width_of_its_slot_and_the_users_own_word_wins() -> None:
    recorded = {"OMP_NUM_THREADS": "64", "PATH": "/a", "SLURM_JOB_ID": "7", "NAS_HPC_SITE": "/old"}
    environ = for_job(recorded, {"OMP_NUM_THREADS": "3"}, {"NAS_HPC_SITE": "/new"}, threads=2)
    assert environ["OMP_NUM_THREADS"] == "3"
    assert environ["OPENBLAS_NUM_THREADS"] == "2"
    assert environ["NAS_HPC_SITE"] == "/new"
    assert environ["PATH"] == "/a"
    assert "SLURM_JOB_ID" not in environ


names = st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=12)


@given(st.dictionaries(names, st.text(max_size=5)), st.integers(1, 64))
def test_recording_is_idempotent_and_pools_are_always_set(environ: dict[str, str], threads: int) -> None:
    once = recordable(environ)
    assert recordable(once) == once
    assert once.items() <= environ.items()
    made = for_job(environ, {}, {}, threads)
    assert all(made[name] == str(threads) for name in THREAD_VARIABLES)
