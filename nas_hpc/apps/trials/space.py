"""The search space of trials: found where the user says, made of whatever he has, sampled and expanded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nas_hpc.apps.architectures import ARCH_SEQ, Searched, searched_problem
from nas_hpc.apps.functions import resolve_file
from nas_hpc.errors import WrongCall
from nas_hpc.loading import load_object, one_line

if TYPE_CHECKING:
    from nas_hpc.problem import HpProblem
    from nas_hpc.search.base import Optimizer

_WHAT = "search space"
_NEST = "."
_SCALARS = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True)
class TrialSpace:
    """What is searched, and what its points are for a trainer."""

    searched: Searched
    form: Any = None
    """Of a space of nested lists and dictionaries: itself, by which points are nested again."""

    @property
    def names(self) -> list[str]:
        """Of the parameters, in their order."""
        return self.searched.names

    def expand(self, parameters: Mapping[str, Any]) -> Any:
        """The object that ``parameters`` stand for: the whole architecture, the nested lists and
        dictionaries, or the parameters themselves."""
        if self.searched.space is not None:
            architecture = self.searched.space.architecture(parameters[ARCH_SEQ])
            return {ARCH_SEQ: list(parameters[ARCH_SEQ]), **architecture.to_json()}
        if self.form is not None:
            return _nested(self.form, parameters, "")
        return dict(parameters)

    def optimizer(self, algorithm: str, seed: int, total: int) -> Optimizer:
        """An optimizer of this space whose configurations are trials' parameters. Raises WrongCall."""
        return self.searched.outward(_maker(algorithm, total)(self.searched.decisions, seed))


def load_space(path: str) -> TrialSpace:
    """The space at "module.name" or "file.py:name", which may be a function that makes it.

    It is an HpProblem, a ConfigurationSpace, an NaProblem, a SearchSpace of architectures, or nested
    dictionaries and lists of dictionaries, in which a list of values is a choice, a tuple a range as in
    ``HpProblem.add_dim``, anything else a constant.

    Raises WrongCall.
    """
    where = resolve_file(path)
    found = load_object(where, _WHAT, "Problem")
    if callable(found) and not isinstance(found, type):
        try:
            found, where = found(), ""
        except WrongCall as error:
            raise WrongCall(f"{_WHAT} {path!r}: {error}") from error
        except Exception as error:
            raised = f"{type(error).__name__}: {one_line(error)}"
            raise WrongCall(f"{_WHAT} {path!r} raised {raised}: correct it") from error
        if found is None:
            raise WrongCall(f"{_WHAT} {path!r} returned nothing: have it return the space")
    return space_of(found, path, where)


def space_of(found: Any, path: str, where: str = "") -> TrialSpace:
    """The space that an object is; ``path`` names it in errors, ``where`` is where evaluations find a problem
    of architectures. Raises WrongCall."""
    from ConfigSpace import ConfigurationSpace

    from nas_hpc.nas import NaProblem, SearchSpace
    from nas_hpc.problem import HpProblem

    try:
        if isinstance(found, NaProblem):
            return TrialSpace(searched_problem(path, found, where))
        if isinstance(found, SearchSpace):
            return TrialSpace(_architectures(found))
        if isinstance(found, ConfigurationSpace):
            found = _of_config_space(found)
        if isinstance(found, dict | list):
            problem = HpProblem()
            _add_nested(problem, found, "")
            return TrialSpace(_checked(problem), found)
        if isinstance(found, HpProblem):
            return TrialSpace(_checked(found))
    except WrongCall as error:
        raise WrongCall(f"{_WHAT} {path!r}: {error}") from error
    kind = found.__name__ if isinstance(found, type) else type(found).__name__
    raise WrongCall(
        f"{_WHAT} {path!r} is a {kind}: give an HpProblem, a ConfigurationSpace, an NaProblem, a "
        "SearchSpace, a dictionary, a list of dictionaries, or a function that returns one of these"
    )


def _checked(problem: HpProblem) -> Searched:
    if not len(problem):
        raise WrongCall("it has nothing to choose: add a hyperparameter")
    assert problem.starting_point_asdict is not None  # they are checked against the whole space
    return Searched(problem)


def _architectures(space: Any) -> Searched:
    from nas_hpc.nas.problem import decisions
    from nas_hpc.nas.space import check_space

    check_space(space)
    return Searched(decisions(space), space)


def _of_config_space(space: Any) -> HpProblem:
    from nas_hpc.problem import HpProblem

    problem = HpProblem()
    problem.add(list(space.values()))
    for more in (list(space.conditions), list(space.forbidden_clauses)):
        if more:
            problem.add(more)
    return problem


def _add_nested(problem: HpProblem, form: Any, prefix: str) -> None:
    for name, value in _parts(form):
        whole = f"{prefix}{name}"
        if _is_inner(value):
            _add_nested(problem, value, f"{whole}{_NEST}")
        elif isinstance(value, list | tuple):
            problem.add_dim(whole, value)
        elif not isinstance(value, _SCALARS):
            raise WrongCall(
                f"{whole} is {value!r:.80} ({type(value).__name__}): give a list of values, a range such as "
                "(1, 8), a constant, or a dictionary of these"
            )


def _parts(form: Any) -> list[tuple[str, Any]]:
    if isinstance(form, list):
        return [(str(place), value) for place, value in enumerate(form)]
    for name in form:
        if not isinstance(name, str) or not name or _NEST in name:
            raise WrongCall(f"{name!r} is no name of a parameter: give a string without a dot")
    return list(form.items())


def _is_inner(value: Any) -> bool:
    """Whether this is a space within a space, not the values of a choice."""
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    )


def _nested(form: Any, parameters: Mapping[str, Any], prefix: str) -> Any:
    def one(name: str, value: Any) -> Any:
        whole = f"{prefix}{name}"
        if _is_inner(value):
            return _nested(value, parameters, f"{whole}{_NEST}")
        return parameters[whole] if isinstance(value, list | tuple) else value

    made = {name: one(name, value) for name, value in _parts(form)}
    return list(made.values()) if isinstance(form, list) else made


def _maker(algorithm: str, total: int) -> Callable[[HpProblem, int], Optimizer]:
    def make(problem: HpProblem, seed: int) -> Optimizer:
        if algorithm == "random":
            from nas_hpc.search.random import RandomSampler

            return RandomSampler(problem, seed)
        if algorithm == "evo":
            from nas_hpc.search.evolution import AgingEvolution

            return AgingEvolution(problem, seed=seed)
        if algorithm == "ambs":
            from nas_hpc.search.forest import ForestOptimizer

            return ForestOptimizer(problem, seed=seed)
        from nas_hpc.apps.trials.policy import PolicyOptimizer

        return PolicyOptimizer(problem, total=total, seed=seed)

    return make
