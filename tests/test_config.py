"""Settings: the nearer origin wins, each value knows its own, and a wrong one is named with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.config import _CHECKS, HELP, Settings, load_settings, strange_variables
from nas_hpc.errors import ConfigError

FILE = "/s/site.toml"


def load(
    site: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **flags: object
) -> Settings:
    return load_settings(environ or {}, flags, site_values={"settings": site or {}}, site_file=FILE)


def test_every_setting_has_a_help_and_a_check() -> None:
    names = [name for name, _ in Settings().items()]
    assert names == list(HELP)
    assert names == list(_CHECKS)


def test_what_looks_like_a_setting_and_is_none_is_told_with_the_nearest() -> None:
    known = [f"NAS_HPC_{name.upper()}" for name in HELP]
    others = [
        "NAS_HPC_SITE",
        "NAS_HPC_ENDPOINT",
        "NAS_HPC_JOB_ID",
        "NAS_HPC_TEST_ID",
        "PATH",
        "XNAS_HPC_NODE",
    ]
    assert strange_variables(dict.fromkeys([*known, *others], "1")) == []
    assert strange_variables({"NAS_HPC_JOBMODE": ""}) == []
    assert strange_variables({"NAS_HPC_JOBMODE": "mpi", "NAS_HPC_SIET": "/s", "NAS_HPC_COLOUR": "1"}) == [
        "NAS_HPC_COLOUR is no setting; nas-hpc doctor lists the settings",
        "NAS_HPC_JOBMODE is no setting; did you mean NAS_HPC_JOB_MODE?",
        "NAS_HPC_SIET is no setting; did you mean NAS_HPC_SITE?",
    ]


def test_every_variable_that_the_package_knows_is_known_as_one(checkout: Path) -> None:
    files = [*checkout.glob("nas_hpc/**/*.py"), *checkout.glob("nas_hpc/**/*.sh")]
    words = {
        word for file in files for word in re.findall(r"NAS_HPC_[A-Z]+(?:_[A-Z]+)*\b(?!_)", file.read_text())
    }
    named = words - {"NAS_HPC_JOB"}  # a beginning
    assert len(named) > 10
    assert strange_variables(dict.fromkeys(named, "1")) == []


def test_the_nearest_origin_wins_and_is_known() -> None:
    levels: list[tuple[dict[str, Any], int, str]] = [
        ({}, 0, "built-in"),
        ({"site": {"nodes": 2}}, 2, FILE),
        ({"site": {"nodes": 2}, "environ": {"NAS_HPC_NODES": "3"}}, 3, "environment NAS_HPC_NODES"),
        ({"site": {"nodes": 2}, "environ": {"NAS_HPC_NODES": "3"}, "nodes": 4}, 4, "flag --nodes"),
    ]
    for given_, value, origin in levels:
        setting = load(**given_).nodes
        assert (setting.value, setting.origin) == (value, origin)


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load({"nodes": 2}, nodes=None).nodes.value == 2


def test_whole_numbers_are_seconds_too_and_other_types_are_refused() -> None:
    assert load({"lease_s": 90}).lease_s.value == 90.0
    for wrong in (True, "90", [90]):
        with pytest.raises(ConfigError, match="it has to be a number above 0"):
            load({"lease_s": wrong})


@pytest.mark.parametrize("text", ["1", "true", "Yes", "on"])
def test_the_environment_says_yes_in_several_words(text: str) -> None:
    assert load(environ={"NAS_HPC_FRESH_INTERPRETER": text}).fresh_interpreter.value is True


@pytest.mark.parametrize(
    ("site", "environ", "said"),
    [
        ({"job_mod": "mpi"}, {}, "unknown setting 'job_mod'; did you mean 'job_mode'?"),
        ({"job_mode": "cereal"}, {}, """job_mode is 'cereal'; it has to be "mpi" or "serial\""""),
        ({"nodes": -1}, {}, "nodes is -1; it has to be a whole number, 0 (all there are) or more"),
        ({"nodes": 1.5}, {}, "nodes is 1.5"),
        ({}, {"NAS_HPC_NODES": "many"}, "environment NAS_HPC_NODES: nodes is 'many'"),
        ({}, {"NAS_HPC_GRACE_S": "-1"}, "environment NAS_HPC_GRACE_S: grace_s is '-1'"),
        ({}, {"NAS_HPC_GRACE_S": "nan"}, "grace_s is 'nan'"),
        ({}, {"NAS_HPC_LEASE_S": "inf"}, "lease_s is 'inf'"),
        (
            {},
            {"NAS_HPC_FRESH_INTERPRETER": "perhaps"},
            "fresh_interpreter is 'perhaps'; it has to be true or false",
        ),
        ({"lease_s": 15}, {}, "heartbeat_s 10 (built-in) must be at most half of lease_s 15 (/s/site.toml)"),
    ],
)
def test_a_wrong_value_is_named_with_its_origin(
    site: dict[str, Any], environ: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(site, environ)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_setting_outside_its_table_is_told_where_to_stand() -> None:
    with pytest.raises(ConfigError, match="below \\[settings\\]"):
        load_settings({}, site_values={"nodes": 2})
    with pytest.raises(ConfigError, match="did you mean 'settings'"):
        load_settings({}, site_values={"setings": {}})
    with pytest.raises(ConfigError, match="has to be a table"):
        load_settings({}, site_values={"settings": 3})


@given(st.dictionaries(st.sampled_from(list(HELP)), st.text(st.characters(exclude_characters="\0"))))
def test_any_environment_is_taken_or_refused_in_one_line(values: dict[str, str]) -> None:
    message = ""
    try:
        load(environ={f"NAS_HPC_{name.upper()}": value for name, value in values.items()})
    except ConfigError as error:
        message = error.message
    assert "\n" not in message
