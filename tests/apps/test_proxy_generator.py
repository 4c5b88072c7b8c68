"""A user's generator of proxy tasks: what it returns is checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas_hpc.apps.proxy.generator import hash_of, make_tasks
from nas_hpc.errors import WrongCall

HEAD = "from nas_hpc.trial import ProxyTaskConfig, data_tasks\n"


def tasks_of(tmp_path: Path, body: str, **baseline: str) -> list[tuple[str, dict[str, str]]]:
    file = tmp_path / "tasks.py"
    file.write_text(f"{HEAD}def generate(baseline):\n    {body}\n")
    made = make_tasks(f"{file}:generate", baseline)
    return [(one.name, dict(one.docker_args_map)) for one in made]


def test_tasks_come_in_the_generators_order_with_flags_as_text(tmp_path: Path) -> None:
    made = tasks_of(tmp_path, "return data_tasks(baseline, [75, 25])", lr="a=b", epochs="3")
    assert made == [
        ("training_data_pct_75", {"lr": "a=b", "epochs": "3", "share": "0.75"}),
        ("training_data_pct_25", {"lr": "a=b", "epochs": "3", "share": "0.25"}),
    ]


def test_the_baseline_that_a_generator_changes_is_its_own(tmp_path: Path) -> None:
    baseline = {"lr": "1"}
    (tmp_path / "t.py").write_text(
        f"{HEAD}def f(b):\n    b['lr'] = 2.5\n    return [ProxyTaskConfig('a', b)]\n"
    )
    [task] = make_tasks(f"{tmp_path}/t.py:f", baseline)
    assert (baseline, dict(task.docker_args_map)) == ({"lr": "1"}, {"lr": "2.5"})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return None", "returned nothing"),
        ("return []", "returned no proxy task"),
        ("return 'abc'", "returned a str"),
        ("return [ProxyTaskConfig('a', {}), ProxyTaskConfig('a', {})]", "two tasks with the name 'a'"),
        ("return [ProxyTaskConfig('a/b', {})]", "has a slash"),
        ("return [ProxyTaskConfig('', {})]", "is empty"),
        ("return [3]", "task 1 is a int"),
        ("return [ProxyTaskConfig('a', {'x': [1]})]", "for 'x'"),
        ("return [ProxyTaskConfig('a', {'job_dir': 1})]", "which the search gives"),
        ("return [ProxyTaskConfig('a', {'x y': 1})]", "has the flag 'x y'"),
        ("return [ProxyTaskConfig('a', {'x': float('nan')})]", "has nan for 'x'"),
        ("return 1 / 0", "raised ZeroDivisionError"),
    ],
)
def test_a_generator_that_gives_no_tasks_is_refused_in_one_line(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(WrongCall, match=said) as caught:
        tasks_of(tmp_path, body)
    assert "\n" not in caught.value.message


def test_what_is_no_function_of_the_flags_is_refused_with_what_would_be_one(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text("word = 'x'\ndef two(a, b): pass\n")
    for name, said in (("word", "is a str, not a function"), ("two", "does not take one argument")):
        with pytest.raises(WrongCall, match=rf"{said}.*generate\(baseline_args\)"):
            make_tasks(f"{tmp_path}/t.py:{name}", {})


def test_flags_are_known_again_whatever_their_order(tmp_path: Path) -> None:
    assert hash_of({"a": "1", "b": "2"}) == hash_of({"b": "2", "a": "1"}) != hash_of({"a": "1", "b": "3"})
