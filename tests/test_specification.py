"""Job specifications: what they may say, how they are recognised, and what importing them costs."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nas_hpc
from nas_hpc import JobSpec, balsamjob_spec, job_specification
from nas_hpc.errors import WrongCall
from nas_hpc.specification import is_job_specification, specify

NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "neither an application nor an argv"),
        ({"application": "A", "argv": ["b"]}, "an application ('A') and an argv ('b'"),
        ({"application": 3}, "application is 3"),
        ({"argv": "python x.py"}, "argv is 'python x.py'"),
        ({"argv": ["python", 0.1]}, "argv[1] is 0.1 (float)"),
        ({"argv": [""]}, "argv[0] is empty"),
        ({"argv": ["./train.sh"]}, "'./train.sh' is a relative path"),
        ({"argv": ["a", "b\0c"]}, "argv[1] has a null character"),
        ({"argv": ["a", "\udcff"]}, "argv[1]: '\\udcff' is no valid text"),
        ({"argv": ["a"], "args": "x"}, "args belong to an application"),
        ({"application": "A", "args": "'open"}, 'args "\'open" cannot be split'),
        ({"application": "A", "args": ["--lr", 3]}, "args[1] is 3 (int)"),
        ({"application": "A", "args": 5}, "args is 5 (int)"),
        ({"application": "A", "num_nodes": 0}, "num_nodes is 0"),
        ({"application": "A", "num_nodes": -2}, "num_nodes is -2"),
        ({"application": "A", "num_nodes": True}, "num_nodes is True"),
        ({"application": "A", "ranks_per_node": 1.5}, "ranks_per_node is 1.5"),
        ({"application": "A", "threads_per_rank": "4"}, "threads_per_rank is '4'"),
        ({"application": "A", "threads_per_core": 0}, "threads_per_core is 0"),
        ({"application": "A", "gpus_per_rank": -1}, "gpus_per_rank is -1: give a whole number from 0"),
        ({"application": "A", "node_packing_count": 0}, "node_packing_count is 0"),
        ({"application": "A", "retries": -1}, "retries is -1"),
        ({"application": "A", "timeout_s": -1}, "timeout_s is -1"),
        ({"application": "A", "timeout_s": NAN}, "timeout_s is nan"),
        ({"application": "A", "wall_time_minutes": "5"}, "wall_time_minutes is '5'"),
        ({"application": "A", "num_nodes": 2, "node_packing_count": 4}, "4 and num_nodes 2"),
        ({"application": "A", "environ": {"A": 1}}, "'A' = 1 (int)"),
        ({"application": "A", "environ": {1: "A"}}, "1 = 'A' (int)"),
        ({"application": "A", "environ": {"": "x"}}, "the name ''"),
        ({"application": "A", "environ": {"A=B": "x"}}, "the name 'A=B'"),
        ({"application": "A", "environ": "A=1"}, "environ is 'A=1'"),
        ({"application": "A", "data": [1]}, "data: [1] is a list"),
        ({"application": "A", "data": {"a": {"b": object}}}, "data, 'a', 'b'"),
        ({"application": "A", "data": {1: 2}}, "the key 1 is a int"),
        ({"application": "A", "data": {"a": NAN}}, "data: nan is no number that JSON has"),
        ({"application": "A", "data": {"a": 2**64}}, "at most 64 bits"),
        ({"application": "A", "data": {"a": "\udcff"}}, "no valid text"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_with_its_value(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(WrongCall) as refused:
        JobSpec(**fields)
    assert said in refused.value.message
    assert refused.value.message.startswith("JobSpec: ")
    assert "\n" not in refused.value.message


def test_data_that_contains_itself_is_refused() -> None:
    data: dict[str, Any] = {}
    data["again"] = data
    with pytest.raises(WrongCall, match="contains itself"):
        JobSpec(application="A", data=data)


def test_what_numpy_computed_is_taken_as_python_has_it() -> None:
    spec = JobSpec(
        application="A",
        args=["--lr", "0.1 0.2", Path("/x y")],  # type: ignore[list-item]
        num_nodes=np.int64(2),  # type: ignore[arg-type]
        timeout_s=np.float32(1.5),  # type: ignore[arg-type]
        data={"a": np.arange(2), "b": np.float64(0.5), "c": (1, None)},
    )
    assert (spec.args, type(spec.num_nodes), spec.timeout_s) == ("--lr '0.1 0.2' '/x y'", int, 1.5)
    assert json.loads(json.dumps(spec.data)) == spec.data == {"a": [0, 1], "b": 0.5, "c": [1, None]}
    assert JobSpec(argv=[Path("/bin/true"), "x"]).argv == ("/bin/true", "x")


def test_it_is_frozen_and_keeps_its_own_copies() -> None:
    environ, data = {"A": "1"}, {"a": [1]}
    spec = JobSpec(application="A", environ=environ, data=data)
    environ["A"], data["a"] = "2", [2]
    assert (spec.environ, spec.data) == ({"A": "1"}, {"a": [1]})
    with pytest.raises(AttributeError):
        spec.num_nodes = 3  # type: ignore[misc]


@given(
    st.dictionaries(st.sampled_from([*JobSpec.__slots__]), st.from_type(object) | st.text() | st.integers())
)
def test_anything_else_is_a_specification_or_a_wrong_call(fields: dict[str, Any]) -> None:
    try:
        spec = JobSpec(**fields)
    except WrongCall as refused:
        assert "\n" not in refused.message  # noqa: PT017
    else:
        assert bool(spec.application) != bool(spec.argv)


@job_specification
def plain(parameters: dict[str, Any]) -> JobSpec:
    """Says which program."""
    return JobSpec(argv=["true", str(parameters["x"])])


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def outer(*args: Any) -> Any:
        return function(*args)

    return outer


class AsMethod:
    @job_specification
    def specify(self, parameters: dict[str, Any]) -> JobSpec:
        return plain(parameters)

    @job_specification
    def __call__(self, parameters: dict[str, Any]) -> JobSpec:
        return plain(parameters)


@pytest.mark.parametrize(
    "function",
    [
        plain,
        balsamjob_spec(lambda parameters: JobSpec(application="A")),
        wrapped(plain),
        wrapped(wrapped(plain)),
        functools.partial(plain),
        functools.partial(wrapped(plain)),
        functools.lru_cache(plain),
        AsMethod().specify,
        AsMethod(),
        job_specification(functools.partial(lambda more, parameters: JobSpec(argv=[more]), "true")),
    ],
)
def test_it_is_recognised_however_it_is_wrapped(function: object) -> None:
    assert is_job_specification(function)


class Yes:
    """Has every attribute."""

    def __getattr__(self, name: str) -> object:
        return self


@pytest.mark.parametrize(
    "function", [None, len, str, lambda config: 0.0, functools.partial(print), Yes(), wrapped(len), 3]
)
def test_what_is_none_is_not_taken_for_one(function: object) -> None:
    assert not is_job_specification(function)


def test_the_decorated_function_is_still_the_function() -> None:
    assert plain({"x": 3}) == JobSpec(argv=["true", "3"])
    assert (plain.__name__, plain.__doc__) == ("plain", "Says which program.")
    with pytest.raises(WrongCall, match="put it before a function"):
        job_specification(3)  # type: ignore[type-var]


@pytest.mark.parametrize("returned", [None, {"application": "A"}, 1.0, JobSpec])
def test_what_returns_no_specification_is_told_what_to_return(returned: Any) -> None:
    with pytest.raises(TypeError, match="not a JobSpec: return JobSpec"):
        specify(lambda parameters: returned, {})


def test_the_package_stays_light_and_its_names_are_there() -> None:
    assert {"JobSpec", "job_specification", "balsamjob_spec"} <= set(dir(nas_hpc))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nas_hpc.nothing  # noqa: B018
    code = """
        import sys, nas_hpc
        assert "nas_hpc.specification" not in sys.modules and "dataclasses" not in sys.modules
        from nas_hpc import JobSpec
        from nas_hpc.trial import job_specification
        heavy = ("sqlalchemy", "sklearn", "tensorflow", "numpy", "zmq", "msgpack", "click")
        print([name for name in heavy if name in sys.modules])
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    said = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(nas_hpc.__file__).parents[1])  # fmt: skip
    assert said.stdout.strip() == "[]"
