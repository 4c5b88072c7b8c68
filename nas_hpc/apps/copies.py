"""The copies of a policy that the agents of a search have: how they learn together, and what others than the
first agent do, which is what that says.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from nas_hpc.apps.exchange import Alone, Spoke, Together, listen, lost
from nas_hpc.errors import NasHpcError, WrongCall
from nas_hpc.evaluator import derived_seed
from nas_hpc.search.ppo import Episodes, Losses, Ppo, Settings


@dataclass(frozen=True, slots=True)
class Shared:
    """What makes all agents' copies the same at the start."""

    choices: tuple[int, ...]
    settings: Settings
    total: int
    """Evaluations in all."""
    seed: int

    def make(self) -> Ppo:
        """A copy."""
        return Ppo(self.choices, self.settings, total=self.total, seed=self.seed)

    def random(self, agent: int, step: int, *, learning: bool = False) -> np.random.Generator:
        """An agent's own random numbers in a step: another sequence for each, the same after a restart."""
        return np.random.default_rng([derived_seed(self.seed, "agent", agent), step, learning])


def learn(
    ppo: Ppo,
    group: Alone,
    mine: Episodes,
    rewards: NDArray[np.float64],
    everyones: NDArray[np.float64],
    rng: np.random.Generator,
    learned: int,
) -> Losses:
    """An update by the episodes of all agents, ``mine`` being this one's; returns its last losses.

    ``everyones``: rewards of all agents; ``learned``: from so many episodes was learned before.
    """
    ppo.observe(everyones)
    update = ppo.begin(mine, rewards, rng, group.add(ppo.moments(mine, rewards)))
    losses = Losses(0.0, 0.0, 0.0, 0.0, 0.0)
    for number in range(len(update)):
        gradient, weight, losses = ppo.gradient(update, number)
        mean, whole = group.mean(gradient, weight)
        if whole:
            ppo.apply(mean, learned)
    return losses


@contextlib.contextmanager
def undivided(group: Alone) -> Iterator[None]:
    """All agents do this to its end or none: signals wait, and a failure of one ends all."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Exception as error:
        if group.size > 1:
            end_all(error)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def end_all(error: Exception) -> None:
    """End all agents because of what this one raised. What MPI raises is another one's death."""
    from mpi4py import MPI

    if isinstance(error, MPI.Exception):
        lost(f"MPI: {' '.join(str(error).split())}")
    what = error.message if isinstance(error, NasHpcError) else f"{type(error).__name__}: {error}"
    print(f"error: {what}", file=sys.stderr, flush=True)
    MPI.COMM_WORLD.Abort(1)


def follow(group: Together, spoke: Spoke) -> None:
    """Do what the first agent says until it says that it is over."""
    ppo: Ppo | None = None
    shared: Shared | None = None
    agent = group.rank
    while (said := spoke.receive()).kind != "end":
        plain, arrays = said.plain, said.arrays
        if said.kind == "start":
            settings = Settings(**plain["settings"])
            shared = Shared(tuple(plain["choices"]), settings, plain["total"], plain["seed"])
            ppo = shared.make()
            if arrays:
                ppo.restore(arrays)
            continue
        assert ppo is not None
        assert shared is not None
        step = plain["step"]
        if said.kind == "sample":
            drawn = ppo.sample(plain["count"], shared.random(agent, step))
            found = {name: getattr(drawn, name) for name in Episodes.__slots__}
            spoke.send("batch", {"digest": ppo.digest()}, found)
        elif said.kind == "learn":
            mine = Episodes(arrays["actions"], arrays["log_probs"], arrays["values"])
            rng = shared.random(agent, step, learning=True)
            with undivided(group):
                learn(ppo, group, mine, arrays["rewards"], arrays["everyones"], rng, plain["learned"])


def assemble(ranks: int) -> Alone:
    """The agents of this search, ``ranks`` of them as was started.

    Raises WrongCall where MPI cannot be loaded, or knows of others than were started.
    """
    if ranks == 1:
        return Alone()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise WrongCall(
            f"{ranks} agents were started, which speak with each other by mpi4py, and "
            f"{sys.executable} cannot load it ({why}): install nas-hpc[mpi], or give the search one node"
        ) from error
    size = MPI.COMM_WORLD.size
    if size != ranks:
        raise WrongCall(
            f"{ranks} agents were started, and mpi4py of {sys.executable} sees {size}: it belongs to "
            "another MPI than the program that started them; see: nas-hpc doctor"
        )
    return Together(MPI.COMM_WORLD)


def follower(ranks: int) -> int:
    """Be an agent other than the first; returns the exit code. What the first one says it says for all."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the first one ends all in order, the MPI program at once
    try:
        group = assemble(ranks)
    except NasHpcError:
        return 0
    assert isinstance(group, Together)
    try:
        spoke = listen(group)
    except NasHpcError as error:
        os.write(2, f"error: agent {group.rank}: {error.message}\n".encode())
        return 1
    assert isinstance(spoke, Spoke)
    with contextlib.closing(spoke):
        try:
            follow(group, spoke)
        except Exception as error:
            end_all(error)
    return 0
