"""Flags of the commands about trials, and calls that cannot be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nas_hpc.apps.proxy.best import BEST_FILE, best_flags, read_best, write_best
from nas_hpc.apps.proxy.search import ProxySettings
from nas_hpc.apps.trials.records import Trial, write_trials
from nas_hpc.apps.trials.spec import TrialsSpec, write_spec
from nas_hpc.cli.main import main
from nas_hpc.cli.trials import _given
from nas_hpc.cli.trials_flags import advice, flag_map, spread, with_proxy_task
from nas_hpc.cli.trials_list import chosen
from nas_hpc.cli.types import parse_args
from nas_hpc.errors import WrongCall

SEARCH = ("search", "--job-name", "a", "--nas-target-reward-metric", "acc", "--search-space-module", "s.py")


def test_underscores_are_dashes_and_a_list_goes_on_to_the_next_flag() -> None:
    words = spread(["--max_nas_trial", "3", "--search_flags", "a=1", "b_c=x--y", "--seed=2", "word"])
    assert words == [
        "--max-nas-trial",
        "3",
        "--search-flags=a=1",
        "--search-flags=b_c=x--y",
        "--seed=2",
        "word",
    ]
    assert spread(["--train-flags", "--seed", "1"]) == ["--train-flags=", "--seed", "1"]
    assert spread(["--train_docker_flags"]) == ["--train-docker-flags="]


def test_a_value_is_kept_whole_with_all_its_equal_signs() -> None:
    assert flag_map("--search-flags", ["a=b=c", "", "url=x?y=z&u="]) == {"a": "b=c", "url": "x?y=z&u="}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["a"], "is no k=v"),
        (["=1"], "is no k=v"),
        (["a=1", "a=2"], "twice"),
        (["job_dir=/x"], "leave it out"),
    ],
)
def test_flags_that_cannot_be_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(WrongCall, match=said):
        flag_map("--search-flags", settings)


@pytest.mark.parametrize(
    ("total", "cap", "good"), [(10, 3, True), (10, 1, False), (100, 60, False), (9, 0, False)]
)
def test_a_cap_that_is_no_quarter_to_third_is_advised_against(total: int, cap: int, good: bool) -> None:
    assert (advice(total, cap) == "") == good


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*SEARCH, "--trainer", "no-such-program", "--root-output-dir", "r"), "no program 'no-such-program'"),
        ((*SEARCH, "--trainer", "true gone.py", "--root-output-dir", "r"), "there is no file gone.py"),
        ((*SEARCH, "--trainer", "true", "--root-output-dir", "s.py/below"), "s.py is no directory"),
        ((*SEARCH, "--trainer", "true", "--root-output-dir", "r", "--problem", "p.P"), "say the same"),
        ((*SEARCH, "--trainer", "true", "--root-output-dir", "r", "--search-flags", "x"), "is no k=v"),
        ((*SEARCH, "--trainer", "true", "--root-output-dir", "r", "--train-frequency", "2"), "--train-flags"),
        ((*SEARCH, "--trainer", "true", "--root-output-dir", "r", "--nodes-per-trial", "2",
          "--trials-per-node", "2"), "--nodes-per-trial 2 and --trials-per-node 2"),
        (("plan", "--max-nas-trial", "9", "--max-parallel-nas-trial", "2", "--hours-per-trial", "1",
          "--nodes-per-trial", "2", "--trials-per-node", "2"), "a trial of several nodes"),
        (("train", "--search-job", "{dir}", "--train-nas-trial-numbers", "1,x", "--train-job-suffix", "s"),
         "'x' is no trial's number"),
        (("train", "--search-job", "{dir}", "--train-nas-trial-numbers", "7", "--train-job-suffix", "s"),
         "trial 7 does not exist"),
        ((*SEARCH, "--root-output-dir", "r"), "give --trainer, the program that trains one trial, or"),
        ((*SEARCH, "--root-output-dir", "r", "--proxy-task", "gone.yaml"), "gone.yaml' cannot be read"),
        ((*SEARCH, "--root-output-dir", "r", "--proxy-task", "s.py"), "line 1 is"),
        (("list-trials", "{dir}/.."), "has no search_job_spec.json"),
        (("rerun", "a"), "say which"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_is_one_line_and_makes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.py").write_text("Problem = dict(x=[1, 2])\n")
    old = tmp_path / "old"
    old.mkdir()
    write_spec(TrialsSpec(job_name="old", directory=str(old), trainer=("true",)))
    before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
    assert main([word.replace("{dir}", str(old)) for word in words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1
    assert {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts} == before


FLAGS = {"epochs": "50", "share": "0.25", "path": 'a: "b"#c\\', "note": "", "on": "true", "grid": "[1, 2]"}


def test_the_best_proxy_task_gives_trainer_and_flags_but_for_what_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = TrialsSpec(job_name="a", directory=str(tmp_path), trainer=("/opt/my python", "-m", "t"))
    stats = {
        "stopping_state": "Met desired correlation",
        "accuracy_correlation_over_step": [0.5, 0.8],
        "latency_correlation": -5.0,
        "final_training_steps": 36,
        "final_training_time_in_hours": 0.5,
    }
    record = {
        "proxy_task_name": "b",
        "docker_args_map": {**FLAGS, "num-steps": "9"},
        "proxy_task_stats": stats,
    }
    settings = ProxySettings(generator="g.g", selection="s", steps_flag="num_steps")
    write_best(spec, settings, record, best_flags(record, settings))
    flags = {"trainer": "", "proxy_task": BEST_FILE, "search_flags": ()}
    found = with_proxy_task(flags)
    assert flag_map("", found["search_flags"]) == {**FLAGS, "num_steps": "37"}
    assert parse_args(found["trainer"]) == ["/opt/my python", "-m", "t"]
    given = with_proxy_task({**flags, "trainer": "true", "search_flags": ("num-steps=5", "new=a=b")})
    assert flag_map("", given["search_flags"]) == {**FLAGS, "num-steps": "5", "new": "a=b"}
    assert given["trainer"] == "true"


@pytest.mark.parametrize(
    ("text", "trainer", "flags"),
    [
        ("search_flags:\n  share: 0.5\n  # less\n\n  'on': yes\n", (), {"share": "0.5", "on": "yes"}),
        ('trainer: ["a", "b"]\nsearch_flags:\n  "x": 1e-3\nnotes:\n  y: 2\n', ("a", "b"), {"x": "1e-3"}),
    ],
)
def test_a_proxy_task_that_was_changed_by_hand_is_read(
    tmp_path: Path, text: str, trainer: tuple[str, ...], flags: dict[str, str]
) -> None:
    (tmp_path / BEST_FILE).write_text(text)
    assert read_best(tmp_path / BEST_FILE) == (trainer, flags)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n", "has no search_flags"),
        ("search_flags:\n  what\n", "line 2 is 'what'"),
        ("trainer: 7\nsearch_flags:\n  a: 1\n", "trainer is 7"),
    ],
)
def test_a_file_that_is_no_proxy_task_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / BEST_FILE).write_text(text)
    with pytest.raises(WrongCall, match=said):
        read_best(tmp_path / BEST_FILE)


def test_full_trainings_may_have_other_nodes_than_the_trials_of_their_search() -> None:
    none = dict.fromkeys(
        ("train_flags", "trainer", "metric", "at_once", "nodes_per_trial", "ranks_per_node",
         "threads_per_rank", "gpus_per_rank", "trials_per_node", "trial_timeout")
    ) | {"use_checkpoint": False}  # fmt: skip
    assert _given(none) == {"use_checkpoint": False}
    given = _given({**none, "nodes_per_trial": 4, "gpus_per_rank": 2, "trial_timeout": 60.0})
    new = replace(TrialsSpec(job_name="a", directory="", trials_per_node=8), **given)
    assert (new.nodes_per_trial, new.gpus_per_rank, new.trials_per_node, new.trial_timeout_s) == (
        4,
        2,
        0,
        60.0,
    )


def test_a_picture_of_any_two_columns_and_a_page_of_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = TrialsSpec(job_name="a", directory=str(tmp_path), metric="top_1")
    write_spec(spec)
    made = [
        Trial(id=n, stage="search", number=n, directory="d", parameters={"lr": n / 10, "kind": "<b>"},
              state="SUCCEEDED" if n < 4 else "FAILED", reward=0.5 - n / 100 if n < 4 else None,
              metrics={"latency_ms": 3.0 * n} if n != 2 else {}, started=100.0 * n, ended=100.0 * n + 50)
        for n in range(1, 5)
    ]  # fmt: skip
    write_trials(tmp_path, made)

    def listed(*words: str, code: int = 0) -> tuple[str, str]:
        assert main(["list-trials", str(tmp_path), *words]) == code
        return capsys.readouterr()

    files = {name: str(tmp_path / name) for name in ("a.png", "b.svg", "page.html")}
    picture = ("--plot", files["a.png"])
    out, err = listed(*picture, "--x", "latency_ms", "--y", "top_1", "--html", files["page.html"])
    assert "of 2 of 4 trials" in err
    assert len(out.splitlines()) == 5
    assert Path(files["a.png"]).read_bytes().startswith(b"\x89PNG")
    page = Path(files["page.html"]).read_text()
    assert page.count("<tr>") == 5
    assert "<th>lr</th>" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    _, err = listed("--plot", files["b.svg"], "--x", "hours", "--sort", "top_1")
    assert "of 3 of 4 trials" in err
    assert "<svg" in Path(files["b.svg"]).read_text()
    for words, said, code in (
        (
            (*picture, "--x", "kind"),
            "--x 'kind' is no column with numbers; there are ended, hours, latency_ms, lr",
            2,
        ),
        ((*picture, "--state", "RUNNING"), "no such trials to draw", 2),
        (("--plot", "a.jpg"), "give a file that ends in .png, .svg, .pdf", 2),
        (("--y", "lr"), "give --plot FILE, too", 2),
        (("--html", str(tmp_path / "no" / "a.html")), "cannot be written: No such file", 1),
    ):
        assert said in listed(*words, code=code)[1]


def test_a_listing_is_sorted_by_any_column_from_the_greatest_down() -> None:
    rows = [
        {"trial": n, "state": state, "reward": reward, "parameters": {"lr": lr}}
        for n, state, reward, lr in [
            (1, "SUCCEEDED", 0.5, 3),
            (2, "FAILED", None, 9),
            (3, "SUCCEEDED", 0.7, 1),
        ]
    ]
    assert [row["trial"] for row in chosen(rows, "reward", "", 0)] == [3, 1, 2]
    assert [row["trial"] for row in chosen(rows, "lr", "", 2)] == [2, 1]
    assert [row["trial"] for row in chosen(rows, "", "failed", 0)] == [2]
    with pytest.raises(WrongCall, match="is no column; there are lr, parameters"):
        chosen(rows, "size", "", 0)
