"""The progress of a search: what is counted, how long it takes still, when a plain line is printed."""

from __future__ import annotations

import io
from typing import Any

from nas_hpc.cli.progress import BAR_CELLS, Estimate, LauncherDisplay, PlainDisplay, line, shown


def view(done: int, most: int = 40, **more: Any) -> dict[str, Any]:
    search = {
        "name": "d",
        "done": done,
        "failed": 1,
        "running": 2,
        "max_evals": most,
        "best": 0.91237,
        **more,
    }
    return {"searches": [search], "utilization": 0.934}


def test_nothing_is_shown_before_the_search_has_begun() -> None:
    assert shown({"searches": []}, "d", Estimate(), 0.0) is None
    assert shown(view(0, most=0), "d", Estimate(), 0.0) is None
    assert shown(view(3), "another", Estimate(), 0.0) is None


def test_the_line_has_counts_best_utilization_and_time_left() -> None:
    estimate = Estimate()
    shown(view(10), "d", estimate, 100.0)
    now = shown(view(20), "d", estimate, 130.0)
    assert now is not None
    assert (
        line(now, bar=False) == "20/40 done  1 failed  2 running  best 0.91237  utilization 93%  1m00s left"
    )
    assert line(now, bar=True).startswith("━" * (BAR_CELLS // 2) + "╌" * (BAR_CELLS // 2) + " 20/40")


def test_a_resumed_search_estimates_from_what_it_did_since() -> None:
    estimate = Estimate()
    assert estimate.left_s(0.0, 30, 40) is None
    assert estimate.left_s(10.0, 35, 40) == 10.0
    assert estimate.left_s(20.0, 40, 40) is None


def test_a_plain_line_is_printed_for_every_tenth() -> None:
    out = io.StringIO()
    display = PlainDisplay("d", out)
    for done in range(0, 41):
        display(view(done))
        display(view(done))
    assert len(out.getvalue().splitlines()) == 11


def test_a_search_without_results_so_far_shows_how_long_it_has_run() -> None:
    estimate = Estimate()
    shown(view(0), "d", estimate, 100.0)
    now = shown(view(0, best=None), "d", estimate, 190.0)
    assert now is not None
    assert line(now, bar=False).endswith("best -  for 1m30s")


def test_a_search_whose_first_evaluation_takes_long_is_shown_as_running() -> None:
    out = io.StringIO()
    display, launcher = PlainDisplay("d", out, 40), LauncherDisplay(out)
    for running in (0, 2, 2):
        now = view(0, most=0, failed=0, running=running, best=None, workflow="W")
        display(now)
        launcher(now)
    own, other = out.getvalue().splitlines()
    assert own.startswith("0/40 done  2 running  best -")
    assert "search W/d: 0 done  2 running" in other


def test_utilization_is_never_shown_above_all_of_it() -> None:
    now = shown({**view(3), "utilization": 1.22}, "d", Estimate(), 0.0)
    assert now is not None
    assert "utilization 100%" in line(now, bar=False)


def test_a_launcher_tells_of_each_of_its_searches() -> None:
    out = io.StringIO()
    display = LauncherDisplay(out)
    for done in range(0, 41):
        one, other = (view(done, workflow="W", job=name, name=name)["searches"][0] for name in "ab")
        display({"searches": [one, other], "utilization": 0.9, "running": 4, "waiting": 0})
    lines = out.getvalue().splitlines()
    assert sum("search W/a: " in line for line in lines) == 11
    assert sum("search W/b: " in line for line in lines) == 11
