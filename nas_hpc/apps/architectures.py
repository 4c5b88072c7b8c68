"""Architectures between searches and evaluations.

A search works on the decisions of a space of architectures, hyperparameters "0", "1", …; an evaluation gets
``{"arch_seq": [3, 0, …]}``, and finds its problem by the environment variable NAS_HPC_PROBLEM.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas_hpc.apps.functions import resolve_file
from nas_hpc.errors import WrongCall
from nas_hpc.files import replace_file
from nas_hpc.loading import load_object

if TYPE_CHECKING:  # loaded when they are needed: a wrong flag is answered before
    from nas_hpc.nas import NaProblem, SearchSpace
    from nas_hpc.problem import HpProblem
    from nas_hpc.search.base import Config, Optimizer

ARCH_SEQ = "arch_seq"
PROBLEM_VARIABLE = "NAS_HPC_PROBLEM"
SPACE_FILE = "space.json"
TRAINING = "nas_hpc.nas.alpha.run"
"""The training of this package."""
_log = logging.getLogger("nas_hpc.apps")


@dataclass(frozen=True, slots=True)
class Searched:
    """What is searched: hyperparameters, or the decisions of a space of architectures."""

    decisions: HpProblem
    space: SearchSpace | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    """For the evaluations."""
    resources: Mapping[str, int] = field(default_factory=dict)
    """What each evaluation occupies where the search's flags say nothing, by the fields of a Shape."""

    @property
    def names(self) -> list[str]:
        """The columns of results.csv: the hyperparameters, or 0, 1, … for the numbers of an architecture."""
        return self.decisions.hyperparameter_names

    def cells(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The values of a configuration by their column."""
        if self.space is None:
            return config
        return {str(place): number for place, number in enumerate(config.get(ARCH_SEQ) or ())}

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """What evaluations get: ``environ``, and what the user ``given``, whose problem is found as the
        search's is: evaluations have directories of their own."""
        both = {**self.environ, **given}
        if PROBLEM_VARIABLE in given:
            both[PROBLEM_VARIABLE] = resolve_file(given[PROBLEM_VARIABLE])
        return both

    def outward(self, optimizer: Optimizer) -> Optimizer:
        """``optimizer``, which works on ``decisions``, with the configurations that evaluations get."""
        return optimizer if self.space is None else ArchitectureOptimizer(optimizer, self.space)


class ArchitectureOptimizer:
    """An optimizer on a space's decisions, whose configurations are ``{"arch_seq": [...]}`` outside.

    The methods are those of ``nas_hpc.search.base.Optimizer``; a configuration that is no architecture of the
    space raises WrongCall.
    """

    def __init__(self, inner: Optimizer, space: SearchSpace) -> None:
        self._inner = inner
        self._space = space

    def ask(self, n: int) -> list[Config]:
        return [to_config(point) for point in self._inner.ask(n)]

    def tell(self, configs: Sequence[Mapping[str, Any]], objectives: Sequence[float | None]) -> None:
        self._inner.tell(self._points(configs), objectives)

    def remember(self, configs: Sequence[Mapping[str, Any]]) -> None:
        self._inner.remember(self._points(configs))

    @property
    def exhausted(self) -> bool:
        return self._inner.exhausted

    @property
    def state(self) -> dict[str, Any]:
        state = dict(self._inner.state)
        best = state.get("best_config")
        return state if best is None else state | {"best_config": to_config(best)}

    def _points(self, configs: Sequence[Mapping[str, Any]]) -> list[Config]:
        return [to_point(config, self._space) for config in configs]


def to_config(point: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of decisions {"0": 3, "1": 0, …}."""
    return {ARCH_SEQ: [point[str(place)] for place in range(len(point))]}


def to_point(config: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """The decisions of a configuration. Raises WrongCall if it is no architecture of ``space``."""
    sequence = config.get(ARCH_SEQ)
    if not isinstance(sequence, list) or not all(isinstance(number, int) for number in sequence):
        raise WrongCall(
            f"the configuration {dict(config)} is no architecture: give {{{ARCH_SEQ!r}: [3, 0, …]}}, "
            f"with {len(space.choices)} whole numbers"
        )
    return {str(place): number for place, number in enumerate(space.check(sequence))}


def check_libraries(run: str) -> None:
    """Raise WrongCall if ``run`` is the training of this package, and what it needs is not installed.

    Nothing is loaded: a search never loads TensorFlow.
    """
    if run == TRAINING:
        for name in ("tensorflow", "keras"):
            if importlib.util.find_spec(name) is None:
                raise WrongCall(f"{run} needs {name}, which is not installed: install nas-hpc[nas]")


def show_size(size: int) -> str:
    """A number of architectures for people: 1296, 1.5e+15; it may be beyond every float."""
    return str(size) if size < 10**6 else f"{Decimal(size):.1e}"


def write_space(space: SearchSpace, directory: str) -> None:
    """Leave the space in the search's ``directory``, for those who read it without the problem."""
    if directory:
        try:
            replace_file(Path(directory, SPACE_FILE), json.dumps(space.to_json()) + "\n")
        except OSError as error:
            _log.warning("%s cannot be written: %s", SPACE_FILE, error.strerror)


def load_searched(path: str) -> Searched:
    """What the problem at ``path`` leaves to a search, with all that can be refused before the first job.

    Raises WrongCall.
    """
    from nas_hpc.nas import NaProblem

    where = resolve_file(path)
    found = load_object(where, "problem", "Problem")
    if isinstance(found, NaProblem):
        return searched_problem(path, found, where)
    if isinstance(found, type) and issubclass(found, NaProblem):
        right = f"give an instance, as in Problem = {found.__name__}()"
        raise WrongCall(f"problem {path!r} is a class: {right}")
    from nas_hpc.problem import load_problem

    return Searched(load_problem(where))


def searched_problem(path: str, problem: NaProblem, where: str = "") -> Searched:
    """What a problem of architectures leaves to a search; ``path`` names it in errors, ``where`` is what its
    evaluations find it by. Raises WrongCall."""
    from nas_hpc.nas.data import check_problem
    from nas_hpc.nas.problem import decisions

    try:
        space, _ = check_problem(problem)
        points = decisions(space, problem.baselines)
    except WrongCall as error:
        raise WrongCall(f"problem {path!r}: {error}") from error
    environ = {PROBLEM_VARIABLE: where} if where else {}
    return Searched(points, space, environ, problem.asked_resources)
