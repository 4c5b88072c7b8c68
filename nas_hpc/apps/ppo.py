"""Proximal policy optimization by agents: ``python -m nas_hpc.apps.ppo --problem … --run …`` on every rank.

The agents are the ranks of one MPI start, which a launcher in mpi mode makes of a job with several nodes. The
first one reads the command line, and says for all what is wrong with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas_hpc.apps.flags import FloatType, SearchOptions, Whole, search_flags, take_options
from nas_hpc.apps.program import main, prepare
from nas_hpc.errors import NasHpcError, WrongCall
from nas_hpc.evaluator import directory_of
from nas_hpc.evaluator.place import BALSAM_VARIABLE
from nas_hpc.processes import ranks
from nas_hpc.wire import ENDPOINT_VARIABLE

if TYPE_CHECKING:  # loaded when they are needed: a wrong flag is answered before
    from nas_hpc.apps.agents import Division
    from nas_hpc.apps.architectures import Searched
    from nas_hpc.search.ppo import Settings

EXAMPLE = """\b
Example, with a launcher on 128 nodes in mpi mode: 11 agents, each with 10 evaluations at a time
  nas-hpc app --name PPO --exec "$(which python) -m nas_hpc.apps.ppo"
  nas-hpc job --name ppo_test --workflow ppo_test --app PPO --num-nodes 11 --args '--evaluator balsam
    --problem nas_hpc.problems.nas.digits_dense.Problem --run nas_hpc.nas.alpha.run --max-evals 10000
    --network ppo_lnlstm_128 --ent-coef 0.01 --noptepochs 10 --gamma 1.0 --lam 0.95'
"""
ENOUGH = 0.9
_SETTINGS = ("network", "cliprange", "ent_coef", "gamma", "lam", "nminibatches", "noptepochs")


class Number(FloatType):
    """A number; which ones are right is said by who takes it."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is no number", param, ctx)


@click.command(epilog=EXAMPLE)
@search_flags
@click.option(
    "--network",
    default="ppo_lnlstm_128",
    show_default=True,
    help="ppo_lstm_N or, with layer normalization, ppo_lnlstm_N; N units: 32, 64 or 128.",
)
@click.option(
    "--cliprange",
    type=Number(),
    default=0.2,
    show_default=True,
    help="So far from 1 the ratio of new to old probabilities counts.",
)
@click.option(
    "--ent-coef",
    type=Number(),
    default=0.01,
    show_default=True,
    help="Weight of the entropy: more tries other things for longer.",
)
@click.option(
    "--gamma", type=Number(), default=1.0, show_default=True, help="Discount of a decision's reward."
)
@click.option(
    "--lam",
    type=Number(),
    default=0.95,
    show_default=True,
    help="Of generalized advantages: 0 trusts the critic, 1 the rewards.",
)
@click.option(
    "--nminibatches",
    type=Whole(1),
    default=1,
    show_default=True,
    help="Gradient steps in one pass over an agent's batch.",
)
@click.option(
    "--noptepochs",
    type=Whole(1),
    default=10,
    show_default=True,
    help="Passes over a batch.",
)
@click.option(
    "--use-all-workers",
    is_flag=True,
    help="Share out the evaluators that a division by the agents leaves, and wait for no stragglers.",
)
@click.option(
    "--enough",
    type=Number(),
    help="With that: a step goes on when this part of each agent's batch is back; what comes later counts in "
    f"the next one.  [default: {ENOUGH}]",
)
def ppo(**flags: Any) -> None:
    """Let agents draw architectures from a policy, have them evaluated, and learn from all results
    together."""
    settings, division = check_flags(flags)
    _lead(take_options(flags), settings, division)


def check_flags(flags: Mapping[str, Any], searched: Searched | None = None) -> tuple[Settings, Division]:
    """What the flags say, apart from those of all searches.

    Raises WrongCall for what cannot be, also with the problem ``searched``."""
    from nas_hpc.apps.agents import Division
    from nas_hpc.search.ppo import Settings

    if searched is not None:
        check_searched(flags["problem"], searched)
    if flags["max_evals"] < 2:
        raise WrongCall(
            f"--max-evals {flags['max_evals']}: PPO learns from batches of several evaluations; give "
            "as many as all agents have at once, or more"
        )
    settings = Settings(**{name: flags[name] for name in _SETTINGS})
    enough, every = flags["enough"], flags["use_all_workers"]
    if enough is not None and not every:
        raise WrongCall(
            f"--enough {enough:g} goes with --use-all-workers: without it every agent waits for all"
        )
    if enough is not None and not 0 < enough <= 1:
        raise WrongCall(f"--enough {enough:g}: give a number above 0, 1 at most")
    return settings, Division(every, (ENOUGH if enough is None else enough) if every else 1.0)


def check_searched(path: str, searched: Searched) -> None:
    """Raise WrongCall for a problem of hyperparameters."""
    if searched.space is None:
        raise WrongCall(
            f"problem {path!r} is one of hyperparameters, and PPO searches architectures: give AMBS, "
            "EVO or RAN"
        )


def _lead(options: SearchOptions, settings: Settings, division: Division) -> None:
    """Be the first agent. Raises NasHpcError, or Interrupted after a signal."""
    from nas_hpc.apps.agents import Leader
    from nas_hpc.apps.copies import Shared, assemble
    from nas_hpc.apps.exchange import Hub, Together, listen
    from nas_hpc.apps.progress import Progress

    if os.environ.get("BALSAM_JOB_MODE") == "serial":
        launcher = "balsam launcher" if _by_balsam() else "nas-hpc launcher"
        raise WrongCall(
            "the agents of PPO are MPI ranks, and this launcher runs in serial mode: use "
            f"{launcher} --job-mode mpi"
        )
    group = assemble(_started())
    with contextlib.ExitStack() as stack:
        hub = None
        if isinstance(group, Together):  # first: the others are waiting for that
            listening = listen(group)
            assert isinstance(listening, Hub)
            hub = stack.enter_context(contextlib.closing(listening))
        prepared = prepare(options)
        searched = prepared.searched
        check_searched(options.problem, searched)
        assert searched.space is not None
        shared = Shared(tuple(searched.space.choices), settings, options.max_evals, prepared.settings.seed)
        evaluator = stack.enter_context(prepared.connect())
        place = directory_of()
        Leader(
            evaluator,
            Progress(
                evaluator, prepared.results, max_evals=options.max_evals, time_limit_s=options.time_limit_s
            ),
            shared,
            division,
            group=group,
            hub=hub,
            directory=Path(place) if place else None,
            baselines=searched.decisions.starting_point_asdict,
        ).run()


def _started() -> int:
    """How many ranks were started."""
    here = _place()
    return 1 if here is None or here.size is None else here.size


def _place() -> ranks.Ranks | None:
    """Which agent this is.

    Under a real Balsam no program of ours stands between its MPI program and this one: what that does not
    tell MPI itself does. In serial mode what stands in the environment is of Balsam's own ranks.
    """
    balsam = _by_balsam()
    if balsam and os.environ.get("BALSAM_JOB_MODE") == "serial":
        return None
    here = ranks.find()
    if balsam and (here is None or here.size is None):
        with contextlib.suppress(ImportError, RuntimeError):
            from mpi4py import MPI

            return ranks.Ranks(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    return here


def _by_balsam() -> bool:
    """Whether a real Balsam started this process."""
    return bool(os.environ.get(BALSAM_VARIABLE)) and not os.environ.get(ENDPOINT_VARIABLE)


def start() -> int:
    """Run this rank; returns the exit code."""
    here = _place()
    if here is not None and here.rank > 0:
        from nas_hpc.apps.copies import follower

        return follower(_started())
    code = 1
    try:
        code = main(ppo)
    finally:
        if code and _started() > 1:
            _release()
    return code


def _release() -> None:
    """Let the other agents end, which wait for the first one to begin."""
    from nas_hpc.apps.copies import assemble
    from nas_hpc.apps.exchange import Together, listen

    logging.disable()
    with contextlib.suppress(NasHpcError):
        group = assemble(_started())
        if isinstance(group, Together) and not group.met:
            listen(group).close()


if __name__ == "__main__":
    sys.exit(start())
