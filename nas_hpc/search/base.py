"""The ask/tell protocol of all searches, and what a search needs to know of a problem.

Objectives are maximised; ``None`` (or NaN, or an infinity) stands for an evaluation that failed.

**Resume.** An optimizer draws every random number from (seed, number of points asked so far), and looks at
its points in the order in which they were asked. So its future depends on three things alone: the points
asked so far in their order, the objectives of those that are told, and its settings. (One thing more for
aging evolution: the order of the successes told, which is their age.) A caller that comes back makes the
optimizer with the same settings and replays

1. every configuration that was asked, in the order of asking: ``remember(configs)`` (they become
   pending, nothing is computed), or the same ``ask`` calls with the ``tell`` calls between them;
2. every configuration that was finished, with its objective, in the order in which they were told: ``tell(
   configs, objectives)``.

After that, ``ask(n)`` gives the same points as without the interruption. Configurations told that were never
asked (another search's history) are taken in as observations, in the order of the ``tell`` calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ConfigSpace import ConfigurationSpace

Config = dict[str, Any]


class Problem(Protocol):
    """What a search reads of a problem (``nas_hpc.problem.HpProblem`` has it)."""

    @property
    def space(self) -> ConfigurationSpace:
        """The space with its conditions and forbidden clauses."""

    @property
    def hyperparameter_names(self) -> list[str]:
        """All names, in the problem's order."""

    @property
    def starting_point_asdict(self) -> list[Config]:
        """The configurations to begin with."""


class Optimizer(Protocol):
    """A sequential search, asked for points and told their objectives; does no I/O and reads no clock."""

    def ask(self, n: int) -> list[Config]:
        """``n`` new configurations, pending from now on.

        They differ from each other and from all that was asked or told while the space has unseen points;
        when it has none left (see ``exhausted``) points come again, so that a caller always gets ``n``.
        """

    def tell(self, configs: Sequence[Mapping[str, Any]], objectives: Sequence[float | None]) -> None:
        """The objectives of finished configurations, to be maximised; ``None`` for a failure."""

    def remember(self, configs: Sequence[Mapping[str, Any]]) -> None:
        """Take ``configs`` as asked, without computing (see the module's text on resume)."""

    @property
    def exhausted(self) -> bool:
        """Whether every point of a finite space was asked or told."""

    @property
    def state(self) -> dict[str, Any]:
        """Numbers for people and logs: asked, told, failed, pending, best objective, best configuration."""
