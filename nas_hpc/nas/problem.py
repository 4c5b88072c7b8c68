"""Problems of neural architecture search, with DeepHyper's names: data, space, training, objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from nas_hpc.errors import WrongCall
from nas_hpc.loading import close_names, load_object, one_line
from nas_hpc.nas.objective import History, Objective
from nas_hpc.nas.operations import Shape
from nas_hpc.nas.settings import Training, training_of
from nas_hpc.nas.space import SearchSpace, check_space, shapes_of
from nas_hpc.problem import HpProblem

LoadData = Callable[..., Any]
"""Returns ((inputs, targets) of training, the same of validation[, the same of the test])."""
MakeSpace = Callable[..., SearchSpace]
"""Called with input_shape, output_shape and the keywords of ``NaProblem.search_space``."""
_RESOURCES = {"num_nodes": 1, "ranks_per_node": 1, "threads_per_rank": 1, "gpus_per_rank": 0}
"""What ``NaProblem.resources`` takes, and the least of each."""


class NaProblem:
    """What to search: every method says one part of it, and raises WrongCall for what it cannot be.

    Example::

        Problem = NaProblem()
        Problem.load_data(load_data)
        Problem.search_space(create_search_space, num_layers=3)
        Problem.hyperparameters(batch_size=64, learning_rate=0.003, num_epochs=20)
        Problem.loss("categorical_crossentropy")
        Problem.metrics(["accuracy"])
        Problem.objective("val_accuracy__max")
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._load: tuple[LoadData, dict[str, Any]] | None = None
        self._make: tuple[MakeSpace, dict[str, Any]] | None = None
        self.preprocessor: Callable[[], Any] | None = None
        self.target_preprocessor: Callable[[], Any] | None = None
        self.training = Training()
        self._loss: Any = None
        self.loss_weights: Any = None
        self.metric_list: list[Any] = []
        self._objective: Objective | Callable[[History], float] | None = None
        self.baselines: list[list[int]] = []
        self.asked_resources: Mapping[str, int] = {}

    # -- saying it ---------------------------------------------------------------------------------
    def load_data(self, function: LoadData, **arguments: Any) -> None:
        """``function(**arguments)`` gives the data: ((x, y), (x, y)) of training and validation, and as a
        third pair those of a test, which no search sees. ``x`` and ``y``: arrays with one example in each
        row, or lists of such arrays for networks with several inputs or outputs."""
        self._load = (_function("load_data", function), arguments)

    def preprocessing(
        self, inputs: Callable[[], Any] | None, targets: Callable[[], Any] | None = None
    ) -> None:
        """Functions that make a transformer as scikit-learn has them (fit, transform), for inputs and
        targets. It is fitted on training data alone."""
        self.preprocessor = None if inputs is None else _function("preprocessing", inputs)
        self.target_preprocessor = None if targets is None else _function("preprocessing", targets)

    def search_space(self, function: MakeSpace, **arguments: Any) -> None:
        """``function(input_shape, output_shape, **arguments)`` makes the space. The shapes are those of the
        data, or the ``input_shape`` and ``output_shape`` given here: a search then need not load the data."""
        self._make = (_function("search_space", function), arguments)

    def hyperparameters(self, **values: Any) -> None:
        """How to train: fields of ``nas_hpc.nas.settings.Training``, by name."""
        self.training = training_of(values, self.training)

    def resources(self, **values: int) -> None:
        """What each training occupies where the search's flags say nothing: ``num_nodes``,
        ``ranks_per_node``, ``threads_per_rank``, ``gpus_per_rank``. More than one rank needs mpi mode."""
        for name, value in values.items():
            if name not in _RESOURCES:
                raise WrongCall(f"resources: unknown {name!r}{close_names(name, list(_RESOURCES))}")
            if isinstance(value, bool) or not isinstance(value, int) or value < _RESOURCES[name]:
                raise WrongCall(
                    f"resources: {name}={value!r}: give a whole number from {_RESOURCES[name]} on"
                )
        self.asked_resources = {**self.asked_resources, **values}

    def loss(self, loss: Any, weights: Any = None) -> None:
        """A loss of Keras by name, a function, or a list of them, one for each output; and their weights."""
        outputs = loss if isinstance(loss, (list, tuple)) else [loss]
        if not outputs or not all(isinstance(one, str) or callable(one) for one in outputs):
            raise WrongCall(
                f"loss {loss!r}: give the name of one, as in 'mse', a function, or a list of these"
            )
        if weights is not None and (not isinstance(weights, (list, tuple)) or len(weights) != len(outputs)):
            raise WrongCall(
                f"loss: weights={weights!r}: give a list with a number for each of {len(outputs)} losses"
            )
        self._loss, self.loss_weights = loss, weights

    def metrics(self, metrics: Sequence[Any]) -> None:
        """Metrics of Keras by name, or functions; "r2" is R2Score, "acc" is accuracy under that name."""
        if isinstance(metrics, str) or not all(isinstance(one, str) or callable(one) for one in metrics):
            raise WrongCall(f"metrics {metrics!r}: give a list of names and functions, as in ['accuracy']")
        self.metric_list = list(metrics)

    def objective(self, objective: str | Callable[[History], float]) -> None:
        """What to maximise: see ``nas_hpc.nas.objective.Objective``; or a function of the history."""
        self._objective = objective if callable(objective) else Objective(objective)

    def baseline(self, *sequence: int) -> None:
        """An architecture to begin with and to compare with; several calls give several."""
        self.baselines.append(list(sequence))

    # -- what was said -------------------------------------------------------------------------------
    @property
    def loader(self) -> tuple[LoadData, dict[str, Any]]:
        """The function that loads the data, and its arguments. Raises WrongCall if there is none."""
        if self._load is None:
            raise WrongCall("the problem has no data: add Problem.load_data(function)")
        return self._load

    @property
    def loss_function(self) -> Any:
        """As given to ``loss``. Raises WrongCall if there is none."""
        if self._loss is None:
            raise WrongCall("the problem has no loss: add one, as in Problem.loss('mse')")
        return self._loss

    @property
    def metric_names(self) -> list[str]:
        """How the history names the metrics."""
        return [
            one if isinstance(one, str) else str(getattr(one, "name", one.__name__))
            for one in self.metric_list
        ]

    @property
    def the_objective(self) -> Objective | Callable[[History], float]:
        """Raises WrongCall if there is none, or it is of no metric."""
        if self._objective is None:
            raise WrongCall(
                "the problem has no objective: add one, as in Problem.objective('val_accuracy__max')"
            )
        if isinstance(self._objective, Objective) and not isinstance(self._loss, (list, tuple)):
            self._objective.check(self.metric_names)
        return self._objective

    @property
    def given_shapes(self) -> tuple[Any, Any] | None:
        """The shapes that ``search_space`` was given; None: those of the data."""
        _, arguments = self._maker
        shapes = arguments.get("input_shape"), arguments.get("output_shape")
        return None if None in shapes else shapes

    @property
    def given_output_shapes(self) -> list[Shape] | None:
        """The ``output_shape`` that ``search_space`` was given, as one for each output; None: the data's."""
        given = self._maker[1].get("output_shape")
        return None if given is None else shapes_of(given, "output")

    @property
    def _maker(self) -> tuple[MakeSpace, dict[str, Any]]:
        if self._make is None:
            raise WrongCall("the problem has no search space: add Problem.search_space(function)")
        return self._make

    def build_space(self, input_shape: Any = None, output_shape: Any = None) -> SearchSpace:
        """The space for data of these shapes, checked. Raises WrongCall."""
        function, arguments = self._maker
        shapes = {"input_shape": input_shape, "output_shape": output_shape}
        try:
            space = function(**{**shapes, **arguments})
        except WrongCall:
            raise
        except Exception as error:
            raised = f"{type(error).__name__}: {one_line(error)}"
            raise WrongCall(f"search_space: {name_of(function)} raised {raised}: correct it") from error
        if not isinstance(space, SearchSpace):
            raise WrongCall(f"search_space: {name_of(function)} gave {space!r}: let it return a SearchSpace")
        check_space(space)
        for sequence in self.baselines:
            space.architecture(sequence)
        return space

    def check(self) -> None:
        """Raise WrongCall for what is missing; nothing is loaded or made."""
        for part in (self.loader, self._maker, self.loss_function, self.the_objective):
            assert part is not None


def decisions(space: SearchSpace, baselines: Sequence[Sequence[int]] = ()) -> HpProblem:
    """The choices of ``space`` as searches know them: hyperparameters "0", "1", … with a number for each
    operation, and ``baselines`` as the points to begin with."""
    problem = HpProblem()
    for number, count in enumerate(space.choices):
        problem.add_dim(str(number), list(range(count)), ordinal=False)
    for sequence in baselines:
        problem.add_starting_point(**{str(n): value for n, value in enumerate(space.check(sequence))})
    return problem


def load_na_problem(path: str) -> NaProblem:
    """The problem at ``package.module.name``, ``package.module:name``, ``file.py:name`` or ``file.py``.

    Raises WrongCall, also for a problem in which something is missing.
    """
    found = load_object(path, "problem", "Problem")
    if isinstance(found, NaProblem):
        found.check()
        return found
    kind = "module" if isinstance(found, ModuleType) else type(found).__name__
    raise WrongCall(f"problem {path!r} is a {kind}: give the name of an nas_hpc.nas.NaProblem")


def _function(method: str, function: Any) -> Callable[..., Any]:
    if not callable(function):
        raise WrongCall(f"{method}: {function!r} is no function: give one, without calling it")
    checked: Callable[..., Any] = function
    return checked


def name_of(function: Any) -> str:
    """What errors call a user's function."""
    return str(getattr(function, "__name__", type(function).__name__))
