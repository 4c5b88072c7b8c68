"""Hyperparameter problems on ConfigSpace with DeepHyper's names, and the loading of users' objects.

A configuration is a plain dictionary {name: int | float | str | bool | None} that survives JSON;
hyperparameters that a condition switches off are absent from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from ConfigSpace import (
    CategoricalHyperparameter,
    Configuration,
    ConfigurationSpace,
    Constant,
    OrdinalHyperparameter,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from ConfigSpace.exceptions import ActiveHyperparameterNotSetError, ForbiddenValueError
from ConfigSpace.hyperparameters import Hyperparameter

from nas_hpc.errors import WrongCall
from nas_hpc.loading import close_names, load_callable, load_object, one_line

__all__ = ["HpProblem", "load_callable", "load_problem"]

Hyper = Hyperparameter[Any, Any]
_PRIORS = ("uniform", "log-uniform")
_SCALARS = (bool, int, float, str, type(None))


class HpProblem:
    """A hyperparameter search space and its starting points.

    Names are those of DeepHyper (2020 to today): ``add_dim``, ``add_hyperparameter``, ``add``,
    ``add_condition``, ``add_forbidden_clause``, ``add_starting_point``. Every method raises ``WrongCall``
    with the value and what would be right, and then leaves the problem as it was.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._space = ConfigurationSpace(seed=seed)
        self._items: list[Any] = []
        self._starting_points: list[dict[str, Any]] = []

    @property
    def space(self) -> ConfigurationSpace:
        """The space, for ConfigSpace's conditions and clauses: ``EqualsCondition(problem.space["a"], …)``."""
        return self._space

    @property
    def hyperparameter_names(self) -> list[str]:
        """Names in the order in which they were added (ConfigSpace itself sorts them)."""
        mine = [item.name for item in self._items if isinstance(item, Hyperparameter)]
        return mine + [name for name in self._space if name not in mine]

    def __len__(self) -> int:
        return len(self._space)

    def __repr__(self) -> str:
        lines = [f"  {self._space[name]}" for name in self.hyperparameter_names]
        lines += [f"  condition: {c}" for c in self._space.conditions]
        lines += [f"  {c}" for c in self._space.forbidden_clauses]
        lines += [f"  starting point: {p}" for p in self._starting_points]
        return "\n".join(["HpProblem", *lines])

    def add_dim(self, name: str, value: Any, default: Any = None, *, ordinal: bool | None = None) -> Hyper:
        """Add a dimension as in DeepHyper 2020.

        ``value``: (1, 10) an integer range, (0.1, 1.0) a range of floats, bounds included, each with an
        optional third element "uniform" or "log-uniform"; a list: its values. A list of rising or falling
        numbers is ordinal, any other categorical; ``ordinal`` decides by hand. A single value: a constant.
        """
        hp = _hyperparameter(name, value, default, ordinal)
        self._add([hp])
        return hp

    def add_hyperparameter(self, value: Any, name: str | None = None, default_value: Any = None) -> Hyper:
        """Add ``value`` (as in ``add_dim``, or a ConfigSpace hyperparameter) under ``name``."""
        if isinstance(value, Hyperparameter):
            if name not in (None, value.name):
                raise WrongCall(f"add_hyperparameter: {value.name!r} has its name: leave {name!r} out")
            self._add([value])
            return value
        if isinstance(value, str) and name is not None and not isinstance(name, str):
            raise WrongCall(f"the value comes first: write add_hyperparameter({name!r}, {value!r})")
        return self.add_dim(name, value, default_value)  # type: ignore[arg-type]  # None is refused there

    def add(self, *items: Any) -> Any:
        """Add ConfigSpace hyperparameters, conditions, forbidden clauses, or lists of them; returns them."""
        self._add(list(_flatten(items)))
        return items[0] if len(items) == 1 else list(items)

    def add_condition(self, condition: Any) -> Any:
        """Add a ConfigSpace condition, such as ``EqualsCondition(child, parent, value)``."""
        return self.add(condition)

    def add_forbidden(self, clause: Any) -> Any:
        """Add a ConfigSpace forbidden clause, such as ``ForbiddenEqualsClause(hyperparameter, value)``."""
        return self.add(clause)

    add_conditions = add_condition
    add_forbidden_clause = add_forbidden
    add_forbidden_clauses = add_forbidden

    def add_starting_point(self, **values: Any) -> None:
        """Let the search begin with this configuration: every active hyperparameter, by name."""
        plain = {name: _plain(value) for name, value in values.items()}
        self.check_configuration(plain, "starting point")
        self._starting_points.append(plain)

    @property
    def starting_point_asdict(self) -> list[dict[str, Any]]:
        """The starting points in the order of adding, checked against the space as it is now."""
        for point in self._starting_points:
            self.check_configuration(point, "starting point")
        return [dict(point) for point in self._starting_points]

    @property
    def default_configuration(self) -> dict[str, Any]:
        """The configuration of all defaults."""
        return self._as_dict(self._space.get_default_configuration())

    def sample(self, n: int, rng: np.random.Generator | None = None) -> list[dict[str, Any]]:
        """``n`` random legal configurations (they may repeat); ``rng`` alone decides which."""
        if n < 0:
            raise WrongCall(f"sample: {n} configurations asked for: give 0 or more")
        if rng is not None:
            self._space.seed(int(rng.integers(2**31)))
        drawn = self._space.sample_configuration(n + 1) if n else []
        return [self._as_dict(c) for c in drawn[:n]]

    def check_configuration(self, config: Mapping[str, Any], what: str = "configuration") -> None:
        """Raise ``WrongCall`` unless ``config`` is a point: names, values, conditions, forbidden clauses."""
        vector = np.full(len(self._space), np.nan)
        for name, value in config.items():
            if name not in self._space:
                near = close_names(name, self.hyperparameter_names)
                raise WrongCall(f"{what} {dict(config)}: no hyperparameter {name!r}{near}")
            hp = self._space[name]
            if not _is_legal(hp, value):
                raise WrongCall(f"{what}: {name}={value!r} is outside the space: give {_describe(hp)}")
            number = np.clip(hp.to_vector(value), hp.lower_vectorized, hp.upper_vectorized)
            vector[self._space.index_of[name]] = number
        active = self._space.get_active_hyperparameters(vector)
        for name in self.hyperparameter_names:
            if name in active and name not in config:
                right = _describe(self._space[name])
                raise WrongCall(f"{what} {dict(config)}: {name!r} is missing: give {right}")
            if name not in active and name in config:
                rules = "; ".join(str(c) for c in self._space.parent_conditions_of[name])
                given = f"{name}={config[name]!r}"
                raise WrongCall(f"{what}: {given} is given but inactive ({rules}): leave it out")
        for clause in self._space.forbidden_clauses:
            if clause.is_forbidden_vector(vector):
                raise WrongCall(f"{what} {dict(config)} is forbidden ({clause}): change one of its values")

    def _as_dict(self, config: Configuration) -> dict[str, Any]:
        values = dict(config)
        return {name: _plain(values[name]) for name in self.hyperparameter_names if name in values}

    def _add(self, items: list[Any]) -> None:
        for item in items:
            if isinstance(item, Hyperparameter):
                self._check_new(item, items)
        try:
            self._space.add(items)
        except Exception as error:
            message = self._explain(error, items)
            # ConfigSpace keeps half of a refused addition: build the former space again
            self._space = ConfigurationSpace(seed=self._seed)
            self._space.add(self._items)
            raise WrongCall(message) from error
        self._items.extend(items)

    def _check_new(self, hp: Hyper, items: list[Any]) -> None:
        same = [i for i in items if isinstance(i, Hyperparameter) and i.name == hp.name]
        if hp.name in self._space or len(same) > 1:
            raise WrongCall(f"hyperparameter {hp.name!r} is there already: give each its own name")
        for value in _choices(hp):
            _check_scalar(hp.name, _plain(value))

    def _explain(self, error: Exception, items: list[Any]) -> str:
        if isinstance(error, ForbiddenValueError):
            return f"{one_line(error)}: it forbids the default configuration: change a default"
        if isinstance(error, ActiveHyperparameterNotSetError):
            return (
                f"the space refuses {', '.join(str(i) for i in items)}: ConfigSpace takes a hyperparameter "
                "that is inactive for one that differs from every value: name the values, with InCondition"
            )
        odd = [i for i in items if not type(i).__module__.startswith("ConfigSpace")]
        if odd:
            right = "ConfigSpace hyperparameters, conditions or forbidden clauses"
            return f"add: {odd[0]!r} is a {type(odd[0]).__name__}: give {right}"
        reason = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
        return f"the space refuses {', '.join(str(i) for i in items)} ({reason}): correct it"


def load_problem(path: str) -> HpProblem:
    """The problem at ``package.module.name``, ``package.module:name``, ``file.py:name`` or ``file.py``.

    Raises:
        WrongCall: one line: what is missing (and where it was looked for), or what stands there instead.
    """
    found = load_object(path, "problem", "Problem")
    if isinstance(found, HpProblem):
        if not len(found):
            right = "Problem.add_hyperparameter((1, 10), 'units')"
            raise WrongCall(f"problem {path!r} has no hyperparameters: add some, as in {right}")
        found.starting_point_asdict  # noqa: B018  # checks them against the finished space
        return found
    name = getattr(found, "__name__", type(found).__name__)
    if isinstance(found, type):
        made = name if issubclass(found, HpProblem) else "HpProblem"
        raise WrongCall(f"problem {path!r} is a class: give an instance, as in Problem = {made}()")
    if isinstance(found, ModuleType):
        raise WrongCall(f"problem {path!r} is a module: add the problem's name, as in {path}.Problem")
    if callable(found):
        raise WrongCall(f"problem {path!r} is a function: let its module call it, as in Problem = {name}()")
    raise WrongCall(f"problem {path!r} is a {name}: give the name of an nas_hpc.problem.HpProblem")


def _hyperparameter(name: Any, value: Any, default: Any, ordinal: bool | None) -> Hyper:
    if isinstance(value, str) and isinstance(name, (tuple, list)):
        raise WrongCall(f"the name comes first: write add_dim({value!r}, {name!r})")
    if not isinstance(name, str) or not name:
        raise WrongCall(f"a hyperparameter's name is a text, not {name!r}: write add_dim('units', (1, 10))")
    default = _plain(default)
    if isinstance(value, tuple):
        hp = _range(name, value, default)
    elif isinstance(value, (list, np.ndarray)):
        hp = _listed(name, [_plain(v) for v in value], default, ordinal)
    elif isinstance(value, (int, float, str)):
        hp = Constant(name, _plain(value))
    else:
        right = "(1, 10), (0.1, 1.0, 'log-uniform') or ['a', 'b']"
        raise _refused(name, f"{value!r} is no range and no list: give {right}")
    if default is not None and not _is_legal(hp, default):
        raise _refused(name, f"the default {default!r} is outside the space: give {_describe(hp)}")
    return hp


def _range(name: str, value: tuple[Any, ...], default: Any) -> Hyper:
    prior = value[2] if len(value) == 3 else "uniform"
    bounds = [_plain(v) for v in value[:2]]
    if len(value) not in (2, 3) or not all(_is_number(b) for b in bounds):
        raise _refused(name, f"{value!r} is no range: give two numbers (low, high), or a list for choices")
    if prior not in _PRIORS:
        raise _refused(name, f"unknown prior {prior!r}: give 'uniform' or 'log-uniform'")
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high)):
        raise _refused(name, f"the range {value!r} is not finite: give two finite numbers")
    if low > high:
        raise _refused(name, f"the range {value!r} is inverted: give ({high!r}, {low!r})")
    if low == high:
        raise _refused(name, f"the range {value!r} holds one value only: give the constant {low!r}")
    log = prior == "log-uniform"
    if log and low <= 0:
        raise _refused(name, f"log-uniform from {low!r}: the range must begin above 0")
    # a default that does not fit is left out here and refused, in our words, by the caller
    fitting = default if _is_number(default) and low <= default <= high else None
    if isinstance(low, int) and isinstance(high, int):
        whole = int(fitting) if fitting is not None and fitting == int(fitting) else None
        return UniformIntegerHyperparameter(name, low, high, default_value=whole, log=log)
    return UniformFloatHyperparameter(name, float(low), float(high), default_value=fitting, log=log)


def _listed(name: str, values: list[Any], default: Any, ordinal: bool | None) -> Hyper:
    if not values:
        raise _refused(name, "the list of values is empty: give at least one")
    for position, value in enumerate(values):
        _check_scalar(name, value)
        if value in values[:position]:
            raise _refused(name, f"{value!r} stands twice in {values!r}: give each value once")
    numbers = all(_is_number(v) for v in values)
    if ordinal is None:
        ordinal = numbers and len(values) > 1 and values in (sorted(values), sorted(values, reverse=True))
    chosen = default if default is not None and default in values else values[0]
    if ordinal:
        return OrdinalHyperparameter(name, values, default_value=chosen)
    return CategoricalHyperparameter(name, values, default_value=chosen)


def _refused(name: str, why: str) -> WrongCall:
    return WrongCall(f"hyperparameter {name!r}: {why}")


def _check_scalar(name: str, value: Any) -> None:
    if not isinstance(value, _SCALARS) or (isinstance(value, float) and not math.isfinite(value)):
        raise _refused(name, f"{value!r} cannot be a value: give finite numbers, strings, bools or None")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _choices(hp: Hyper) -> list[Any]:
    if isinstance(hp, CategoricalHyperparameter):
        return list(hp.choices)
    if isinstance(hp, OrdinalHyperparameter):
        return list(hp.sequence)
    return [hp.value] if isinstance(hp, Constant) else []


def _is_legal(hp: Hyper, value: Any) -> bool:
    """ConfigSpace's answer, but 1 is not True, "2" is not 2 and 2.5 is no integer."""
    listed = _choices(hp)
    if listed:
        return any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in map(_plain, listed))
    if not _is_number(value) or not math.isfinite(value):
        return False
    whole = isinstance(_plain(hp.default_value), int)
    return bool(hp.legal_value(value)) and (not whole or value == int(value))


def _describe(hp: Hyper) -> str:
    listed = _choices(hp)
    if listed:
        return f"one of {[_plain(v) for v in listed]!r}"
    kind = "an integer" if isinstance(_plain(hp.default_value), int) else "a number"
    return f"{kind} from {_plain(getattr(hp, 'lower', None))} to {_plain(getattr(hp, 'upper', None))}"


def _plain(value: Any) -> Any:
    """numpy's scalars as Python's, everything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _flatten(items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        if isinstance(item, (list, tuple)):
            yield from _flatten(item)
        else:
            yield item
