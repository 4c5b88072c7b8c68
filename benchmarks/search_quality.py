"""AMBS against random search in one run: best objective, repetitions, cost of asking.

    python -m benchmarks.search_quality --problem polynome2 --seeds 10 --evaluations 100 --json

One worker, one evaluation at a time; the same seeds for both. Numbers depend on the seeds alone, times aside.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.functions import FUNCTIONS, mixed_problem, mixed_run
from nas_hpc.problem import HpProblem
from nas_hpc.search import ForestOptimizer, RandomSampler

OWN_PROBLEMS = ("polynome2", "toy_forbidden", "digits")
_OBSERVATIONS, _BATCH = 1_000, 100  # of the timing
_ASK_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Task:
    """One search; ``surrogate`` is RF, ET, or DUMMY for random."""

    problem: str
    surrogate: str
    seed: int
    evaluations: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one search found; repeats counts evaluations of a configuration that was evaluated before."""

    best: float
    repeats: int
    search_s_per_point: float
    run_s_per_point: float


def load(name: str) -> tuple[HpProblem, Callable[[dict[str, Any]], Any]]:
    """Problem and run function by the name on the command line."""
    if name in FUNCTIONS:
        return FUNCTIONS[name].problem(), FUNCTIONS[name].run
    module = importlib.import_module(f"nas_hpc.problems.hps.{name}")
    return module.Problem, module.run


def make(problem: HpProblem, surrogate: str, seed: int) -> RandomSampler:
    """The optimizer under test, with its defaults."""
    if surrogate == "DUMMY":
        return RandomSampler(problem, seed=seed)
    return ForestOptimizer(problem, surrogate=surrogate, seed=seed)


def search(task: Task) -> Outcome:
    """Run one search in this process, on one thread."""
    with threadpool_limits(1):
        return _search(task)


def _search(task: Task) -> Outcome:
    problem, run = load(task.problem)
    optimizer = make(problem, task.surrogate, task.seed)
    best, asking_s, running_s, seen = -np.inf, 0.0, 0.0, set()
    for number in range(task.evaluations):
        began = time.process_time()
        config = optimizer.ask(1)[0]
        asked = time.process_time()
        np.random.seed([task.seed, number])  # as the engine does before an evaluation
        result = run(config)
        objective = float(result["objective"] if isinstance(result, dict) else result)
        ran = time.process_time()
        optimizer.tell([config], [objective])
        best = max(best, objective)
        seen.add(json.dumps(config, sort_keys=True))
        asking_s += asked - began + time.process_time() - ran
        running_s += ran - asked
    n = task.evaluations
    return Outcome(best, n - len(seen), asking_s / n, running_s / n)


def ask_seconds(surrogate: str) -> float:
    """CPU seconds of ``ask(100)`` at 1,000 observations of the mixed space; the best of a few."""
    problem = mixed_problem()
    history = RandomSampler(problem, seed=1).ask(_OBSERVATIONS)
    values = [mixed_run(config) for config in history]
    times = []
    for seed in range(_ASK_REPEATS):
        optimizer = ForestOptimizer(problem, surrogate=surrogate, seed=seed)
        optimizer.tell(history, values)
        began = time.process_time()
        batch = optimizer.ask(_BATCH)
        times.append(time.process_time() - began)
        assert len({json.dumps(config, sort_keys=True) for config in batch}) == _BATCH
    return min(times)


def compare(problem: str, surrogate: str, seeds: int, evaluations: int, processes: int) -> dict[str, Any]:
    """The benchmark's numbers for one problem."""
    tasks = [Task(problem, kind, s, evaluations) for s in range(seeds) for kind in (surrogate, "DUMMY")]
    if processes > 1:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            outcomes = list(pool.map(search, tasks))
    else:
        outcomes = [search(task) for task in tasks]
    ambs, random = outcomes[0::2], outcomes[1::2]
    return {
        "problem": problem,
        "surrogate": surrogate,
        "seeds": seeds,
        "evaluations": evaluations,
        "ambs_median_best": median(o.best for o in ambs),
        "random_median_best": median(o.best for o in random),
        "ambs_best": [o.best for o in ambs],
        "random_best": [o.best for o in random],
        "ambs_wins": sum(a.best > r.best for a, r in zip(ambs, random, strict=True)),
        "ambs_repeats_share": sum(o.repeats for o in ambs) / (seeds * evaluations),
        "ambs_search_s_per_point": median(o.search_s_per_point for o in ambs),
        "run_s_per_point": median(o.run_s_per_point for o in outcomes),
    }


def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_quality", description=__doc__)
    parser.add_argument("--problem", default="polynome2", choices=[*OWN_PROBLEMS, *FUNCTIONS])
    parser.add_argument("--surrogate", default="RF", choices=["RF", "ET"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, help="for each search (digits 40, else 100)")
    parser.add_argument("--processes", type=int, help="searches at a time (digits 2, else 1)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    digits = options.problem == "digits"
    numbers = compare(
        options.problem,
        options.surrogate,
        options.seeds,
        options.evaluations or (40 if digits else 100),
        options.processes or (2 if digits else 1),
    )
    with threadpool_limits(1):
        numbers["ask_100_at_1000_s"] = ask_seconds(options.surrogate)
    if options.json:
        print(json.dumps(numbers))
        return
    for key, value in numbers.items():
        print(f"{key:26} {value:.4g}" if isinstance(value, float) else f"{key:26} {value}")


if __name__ == "__main__":
    main()
