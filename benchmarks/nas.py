"""Searches of architectures: evolution and PPO beside random search, warm interpreters beside fresh ones.

    python -m benchmarks.nas hidden --seeds 10          # a space whose best architecture is known
    python -m benchmarks.nas pairs --seeds 10           # another one, where no layer can be chosen alone
    python -m benchmarks.nas digits --seeds 10          # digits_dense: real data, small trainings by numpy
    python -m benchmarks.nas digits-keras --seeds 10    # the same by nas_hpc.nas.alpha: an hour of a core
    python -m benchmarks.nas learning --seeds 5         # PPO: evaluations until it has learned
    python -m benchmarks.nas policy                     # PPO: what a step costs
    python -m benchmarks.nas trainings                  # half-second trainings per minute, warm and fresh

The searches have the same seeds and the same number of evaluations, several at once that end in any order;
PPO, one agent, waits for all of them before it asks for more.
On digits an architecture is trained once, and has the same objective in every search; ``--table FILE`` keeps
the trainings for the next run. ``trainings`` runs two searches under real launchers, one after the other.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

from benchmarks import nas_digits, nas_numpy, nas_ppo
from benchmarks.common import command, show, workplace
from benchmarks.nas_spaces import SPACES
from nas_hpc.nas.problem import decisions
from nas_hpc.search import AgingEvolution, RandomSampler

AT_ONCE = 8
"""Evaluations of a search at once."""
DIGITS = "benchmarks.nas_digits.Problem"
Sequence_ = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long the searches are, and what evolution does."""

    seeds: int
    evaluations: int
    population: int
    sample: int


# -- searches ----------------------------------------------------------------------------------------------
def searching(optimizer: RandomSampler, evaluations: int, seed: int) -> Iterator[Sequence_]:
    """One search: yields architectures to evaluate, takes objectives by ``send``; results become known in
    the order of random durations, ``AT_ONCE`` evaluations at once. Returns the objectives, a failure's
    as NaN."""
    rng = np.random.default_rng([seed, 4])
    running: list[tuple[float, int, dict[str, Any], float | None]] = []
    objectives: list[float] = []
    now = 0.0
    for number in range(evaluations):
        if len(running) == AT_ONCE:
            now, _, config, objective = heapq.heappop(running)
            optimizer.tell([config], [objective])
        (config,) = optimizer.ask(1)
        objective = yield tuple(int(config[str(place)]) for place in range(len(config)))
        objectives.append(np.nan if objective is None else objective)
        heapq.heappush(running, (now + rng.uniform(0.5, 1.5), number, config, objective))
    return objectives


@dataclass(slots=True)
class Search:
    """A search under way."""

    steps: Any
    wants: Sequence_ | None = None
    objectives: list[float] = field(default_factory=list)

    def best(self, after: int) -> float:
        """The highest of the first ``after`` evaluations."""
        return float(np.nanmax(self.objectives[:after]))

    def late_mean(self) -> float:
        """Of the second half of the evaluations: what the search proposes once it knows something."""
        return float(np.nanmean(self.objectives[len(self.objectives) // 2 :]))

    def go_on(self, objective: float | None = None, *, first: bool = False) -> None:
        """Take an objective, and want the next architecture, or be done."""
        try:
            self.wants = next(self.steps) if first else self.steps.send(objective)
        except StopIteration as end:
            self.wants, self.objectives = None, end.value


SEARCHES = ("evolution", "ppo", "random")


def begun(space: Any, plan: Plan, seed: int) -> dict[str, Search]:
    """The searches with the same seed, not begun."""
    problem = decisions(space)
    evolution = AgingEvolution(problem, population=plan.population, sample=plan.sample, seed=seed)
    return {
        "evolution": Search(searching(evolution, plan.evaluations, seed)),
        "ppo": Search(nas_ppo.searching(space.choices, plan.evaluations, seed, AT_ONCE)),
        "random": Search(searching(RandomSampler(problem, seed=seed), plan.evaluations, seed)),
    }


def compared(results: Sequence[dict[str, Search]], plan: Plan) -> dict[str, Any]:
    """Medians, spread, and how often evolution and PPO were ahead of random search."""
    figures: dict[str, Any] = {
        "seeds": plan.seeds,
        "evaluations": plan.evaluations,
        "population, sample": f"{plan.population}, {plan.sample}",
    }
    for name in SEARCHES:
        best = [one[name].best(plan.evaluations) for one in results]
        figures[f"{name}_median"] = median(best)
        figures[f"{name}_quartiles"] = _quartiles(best)
        figures[f"{name}_median_at_half"] = median(one[name].best(plan.evaluations // 2) for one in results)
        figures[f"{name}_mean_of_second_half"] = median(one[name].late_mean() for one in results)
    for name in SEARCHES[:-1]:
        figures |= {f"{name}_{key}": value for key, value in _beside_random(results, name, plan).items()}
    return figures


def _beside_random(results: Sequence[dict[str, Search]], name: str, plan: Plan) -> dict[str, Any]:
    from scipy.stats import wilcoxon

    both = [(one[name], one["random"]) for one in results]
    differences = [mine.best(plan.evaluations) - other.best(plan.evaluations) for mine, other in both]
    same = len(differences) < 2 or not any(differences)
    return {
        "ahead": sum(one > 0 for one in differences),
        "equal": sum(one == 0 for one in differences),
        "p_wilcoxon_one_sided": 1.0 if same else float(wilcoxon(differences, alternative="greater").pvalue),
        "mean_ahead": sum(mine.late_mean() > other.late_mean() for mine, other in both),
    }


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [round(one, 4) for one in values]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [round(low, 4), round(high, 4)]


def synthetic(name: str, plan: Plan) -> dict[str, Any]:
    """The comparison on a space whose best architecture is known to be worth 1."""
    results = []
    for seed in range(plan.seeds):
        known = SPACES[name](seed)
        searches = begun(known.space, plan, seed)
        for search in searches.values():
            search.go_on(first=True)
            while search.wants is not None:
                search.go_on(known.value(search.wants))
        results.append(searches)
    size = float(SPACES[name](0).space.size)
    return {"space": name, "architectures": f"{size:.3g}", "optimum": 1.0, **compared(results, plan)}


# -- trainings of digits -----------------------------------------------------------------------------------
class Table:
    """Objectives of trained architectures, each trained once, in a file if one is named."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self.known: dict[Sequence_, float | None] = {}
        if self._path is not None and self._path.exists():
            lines = self._path.read_text().splitlines()
            self.known = {tuple(sequence): value for sequence, value in map(json.loads, lines)}

    def add(self, sequence: Sequence_, objective: float | None) -> None:
        """One more."""
        self.known[sequence] = objective
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps([sequence, objective]) + "\n")


def by_keras(sequence: Sequence_) -> float:
    """A training as evaluations do it, in a fork of this process, as of a launcher's warm interpreter."""
    from nas_hpc.nas import alpha
    from nas_hpc.processes.call import RunningJob, seed_all

    seed_all(0)
    return float(alpha.run(RunningJob({"arch_seq": list(sequence)}, "", 0))["objective"])


def digits(plan: Plan, processes: int, table: Table, *, keras: bool) -> dict[str, Any]:
    """The comparison by real trainings, ``processes`` at a time."""
    if keras:
        os.environ["NAS_HPC_PROBLEM"] = DIGITS
        from nas_hpc.nas import alpha

        alpha.run.prepare()  # type: ignore[attr-defined]
        train, epochs = by_keras, nas_digits.Problem.training.num_epochs
    else:
        subject = nas_numpy.Digits()
        train, epochs = subject.train, nas_numpy.EPOCHS
    space = nas_digits.Problem.build_space((64,), (10,))
    results = [begun(space, plan, seed) for seed in range(plan.seeds)]
    started = time.monotonic()
    searches = [search for one in results for search in one.values()]
    trained = _all_trained(searches, processes, table, train)
    return {
        "space": "digits_dense",
        "architectures": f"{float(space.size):.3g}",
        "epochs": epochs,
        "trainings": trained,
        "took_s": time.monotonic() - started,
        **compared(results, plan),
    }


def _child(train: Callable[[Sequence_], float], sequence: Sequence_, answer: connection.Connection) -> None:
    try:
        objective: float | None = train(sequence)
    except Exception as error:
        print(f"{list(sequence)}: {type(error).__name__}: {error}")
        objective = None
    answer.send(objective)
    os._exit(0)


def _all_trained(
    searches: Sequence[Search], processes: int, table: Table, train: Callable[[Sequence_], float]
) -> int:
    """Run all searches to their ends; how many architectures were trained for that."""
    for search in searches:
        search.go_on(first=True)
    ready, trained = deque(searches), 0
    waiting: dict[Sequence_, list[Search]] = {}
    running: dict[connection.Connection, tuple[Sequence_, Any]] = {}
    while ready or running:
        while ready and len(running) < processes:
            search = ready.popleft()
            while search.wants is not None and search.wants in table.known:
                search.go_on(table.known[search.wants])
            if search.wants is None:
                continue
            waiting.setdefault(search.wants, []).append(search)
            if len(waiting[search.wants]) == 1:
                mine, its = get_context("fork").Pipe()
                child = get_context("fork").Process(target=_child, args=(train, search.wants, its))
                child.start()
                its.close()
                running[mine] = (search.wants, child)
        for mine in connection.wait(list(running)) if running else []:
            assert isinstance(mine, connection.Connection)
            sequence, child = running.pop(mine)
            table.add(sequence, mine.recv())
            child.join()
            trained += 1
            ready.extend(waiting.pop(sequence))
    return trained


# -- warm and fresh ----------------------------------------------------------------------------------------
def trainings(warm: int, fresh: int, epochs: int) -> dict[str, Any]:
    """Trainings per minute under a launcher, from the first one asked for to the last end."""
    os.environ[nas_digits.EPOCHS] = str(epochs)
    figures: dict[str, Any] = {"epochs": epochs, "cores": len(os.sched_getaffinity(0))}
    for name, count, flags in (("warm", warm, []), ("fresh", fresh, ["--fresh-interpreter"])):
        with workplace() as place:
            figures |= {f"{name}_{key}": value for key, value in _searched(place, count, flags).items()}
    figures["warm_to_fresh"] = figures["warm_per_minute"] / figures["fresh_per_minute"]
    return figures


def _searched(place: Path, count: int, flags: Sequence[str]) -> dict[str, Any]:
    site = place / "site"
    command("init", str(site), cwd=place)
    command(
        "--site", str(site), "run", "nas", "bench", "-p", DIGITS, "--app", "RAN", "--seed", "1",
        "--max-evals", str(count), "--no-report", *flags, cwd=place,
    )  # fmt: skip
    lines = (site / "data" / "bench" / "attempts.jsonl").read_text().splitlines()
    attempts = [one for one in map(json.loads, lines) if one["creator"] and one["outcome"] == "ok"]
    results = [json.loads(path.read_text()) for path in (site / "data" / "bench").glob("task*/result.json")]
    took_s = max(one["end"] for one in attempts) - min(one["submitted"] for one in attempts)
    return {
        "trainings": len(attempts),
        "training_s": median(one["metadata"]["train_s"] for one in results),
        "took_s": took_s,
        "per_minute": 60 * len(attempts) / took_s,
    }


# -- command line ------------------------------------------------------------------------------------------
def main() -> None:
    """Command line; see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.nas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", choices=[*SPACES, "digits", "digits-keras", "learning", "policy", "trainings"]
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, help="of each search (digits 200, else 500)")
    parser.add_argument("--population", type=int, help="of evolution (digits 20, else 100)")
    parser.add_argument("--sample", type=int, help="of evolution (digits 5, else 10)")
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="digits: trainings at once"
    )
    parser.add_argument("--epochs", type=int, help="of a training (digits-keras 5, trainings 20)")
    parser.add_argument("--table", default="", help="digits: file of trainings that were done before")
    parser.add_argument("--warm", type=int, default=60, help="trainings: how many in warm interpreters")
    parser.add_argument("--fresh", type=int, default=12, help="trainings: how many in fresh ones")
    parser.add_argument("--network", default="ppo_lnlstm_128", help="learning, policy: of PPO")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    real = options.what.startswith("digits")
    plan = Plan(
        options.seeds,
        options.evaluations or (200 if real else 500),
        options.population or (20 if real else 100),
        options.sample or (5 if real else 10),
    )
    run: dict[str, Callable[[], dict[str, Any]]] = {
        "digits": lambda: digits(plan, options.processes, Table(options.table), keras=False),
        "digits-keras": lambda: digits(plan, options.processes, Table(options.table), keras=True),
        "learning": lambda: nas_ppo.compared(options.seeds, options.evaluations or 10_000, options.network),
        "policy": lambda: nas_ppo.costs(options.network),
        "trainings": lambda: trainings(options.warm, options.fresh, options.epochs or 20),
    }
    if real and options.epochs:
        nas_digits.Problem.hyperparameters(num_epochs=options.epochs)
    show(run.get(options.what, lambda: synthetic(options.what, plan))(), options.json)


if __name__ == "__main__":
    main()
