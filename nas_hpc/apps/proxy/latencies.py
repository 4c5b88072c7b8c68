"""The latencies of a round's models: measured by evaluations of the tool's own job, or waited for, where
workers beside it measure them.

They are measured when the round's trainings are over: what trains on the same node would disturb it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nas_hpc.apps.proxy.reference import Reference
from nas_hpc.apps.proxy.rounds import LOOK_EVERY_S, Round, latency_of, trial_key
from nas_hpc.apps.trials.records import CANCELLED, FAILED, RUNNING, SUCCEEDED, Trial
from nas_hpc.apps.trials.runner import Order, TrialRunner
from nas_hpc.apps.trials.spec import TRAIN, TrialsSpec, id_of
from nas_hpc.errors import WrongCall
from nas_hpc.trial import rewards
from nas_hpc.trial.latency import LIMIT_S, error_of, has_model, is_measured
from nas_hpc.trial.measure import Calculator, program
from nas_hpc.trial.rewards import WAIT_S

STAGE: Final = "latency"
ON_PREMISES: Final = "on premises"
_MOST_TRIES, _PER_TRY = 3, 300_000
_log = logging.getLogger("nas_hpc.apps")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencySettings:
    """How a tool comes by latencies that trainers do not give."""

    latency_calculator: tuple[str, ...] = ()
    """A program that measures one exported model; none: the tool has nothing measured."""
    latency_flags: Mapping[str, str] = field(default_factory=dict)
    num_latency_workers: int = 1
    """So many models are measured at once."""
    latency_timeout_s: float = LIMIT_S
    """A measurement that takes longer is given up."""
    latency_gpus: int | None = None
    """GPUs of a measurement; None: as many as a training has."""
    latency_node_alone: bool = False
    """A measurement has a node for itself."""
    on_premises_latency: bool = False
    """Workers that follow the tool's directory measure them."""
    latency_wait_s: float = WAIT_S
    """So long such a worker is waited for, from the last model that was measured."""

    @property
    def wanted(self) -> bool:
        """Whether somebody measures."""
        return bool(self.latency_calculator) or self.on_premises_latency

    def job_name(self, round_name: str) -> str:
        """Who measures the models of a round, for the state file; "": nobody."""
        if self.latency_calculator:
            return f"{round_name}_{STAGE}"
        return ON_PREMISES if self.on_premises_latency else ""

    def job_link(self, trials: str) -> str:
        """Where what was measured stands, below the directory of the trials, for the state file."""
        return trials if self.wanted else ""

    def shape(self) -> dict[str, int]:
        """What a measurement occupies, where that is not as with a training."""
        found = {"num_nodes": 1, "ranks_per_node": 1}
        if self.latency_gpus is not None:
            found["gpus_per_rank"] = self.latency_gpus
        return {**found, "node_packing_count": 1} if self.latency_node_alone else found

    def environment(self) -> dict[str, str]:
        """What trials find in their environment: a trainer may wait for workers beside the tool."""
        workers = self.on_premises_latency and not self.latency_calculator
        return rewards.environment(workers=workers, wait_s=self.latency_wait_s)


def latency_settings(values: Mapping[str, Any]) -> LatencySettings:
    """Those among the settings of a tool."""
    return LatencySettings(
        latency_calculator=tuple(values.get("latency_calculator") or ()),
        latency_flags=dict(values.get("latency_flags") or {}),
        num_latency_workers=int(values.get("num_latency_workers") or 1),
        latency_timeout_s=float(values.get("latency_timeout_s") or LIMIT_S),
        latency_gpus=values.get("latency_gpus"),
        latency_node_alone=bool(values.get("latency_node_alone")),
        on_premises_latency=bool(values.get("on_premises_latency")),
        latency_wait_s=float(values.get("latency_wait_s", WAIT_S)),
    )


def check_latencies(settings: LatencySettings, reference: Reference) -> None:
    """Raise WrongCall where latencies are to be measured that could be compared with nothing."""
    if settings.wanted and not reference.has_latency:
        known = sum(map(math.isfinite, reference.latency))
        flag = "--latency-calculator" if settings.latency_calculator else "--on-premises-latency"
        raise WrongCall(
            f"{flag}: {known} of the {len(reference.models)} full trainings in {reference.source} have a "
            "latency, and a rank correlation needs 5 and 70 %: give the selection that flag, too, or leave "
            "it out here"
        )


class Latencies:
    """Has the models of one tool's rounds measured."""

    def __init__(
        self,
        spec: TrialsSpec,
        runner: TrialRunner,
        settings: LatencySettings,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._spec, self._runner, self._settings = spec, runner, settings
        self._look_every_s = look_every_s
        self._since = time.time()
        over = (one for one in runner.trials.values() if one.state in (FAILED, CANCELLED))
        self._before = frozenset(one.id for one in over)
        """Measurements that came to nothing before this attempt of the tool, which makes them again."""

    def measure(self, round: Round, trials: Sequence[Trial]) -> str:
        """Come by the latencies of what ``trials``, which are over, exported. Returns what is to be said of
        it, "" if nothing.

        Raises WorkFailed; Interrupted and LauncherGone pass through.
        """
        if not self._settings.wanted:
            return ""
        ended = [one for one in trials if one.state == SUCCEEDED]
        if ended and not any(has_model(one.directory) for one in ended):
            return "no latency was measured: no trial left a model in saved_model of its directory"
        waiting = [one for one in ended if has_model(one.directory) and not self._is_measured(one)]
        if waiting and self._settings.latency_calculator:
            self._run(round, waiting)
        elif waiting:
            self._wait(round, waiting)
        left = [one for one in ended if math.isnan(self.latency_of(one))]
        if not left:
            return ""
        why = next((text for one in left if (text := error_of(one.directory))), "") or self._no_reason(left)
        return (
            f"no latency could be measured of the trials {', '.join(str(one.number) for one in left)}: {why}"
        )

    def latency_of(self, trial: Trial, metric: str = "") -> float:
        """The latency of a trial that counts, not-a-number if it has none: the measured one where somebody
        measures, and else what the trainer says, by ``metric`` or with its curve. Of both kinds together
        nothing could be learnt."""
        return latency_of(trial, metric, measured=self._settings.wanted)

    def _is_measured(self, trial: Trial) -> bool:
        return is_measured(trial.directory, self._since)

    def _no_reason(self, left: Sequence[Trial]) -> str:
        if not all(has_model(one.directory) for one in left):
            return "they left no model in saved_model of their directories"
        if self._settings.latency_calculator:
            return f"see nas-hpc why of their jobs in {self._spec.job_name}"
        return (
            f"no worker did so within {self._settings.latency_wait_s:g} s: start one with nas-hpc "
            f"run-latency-calculator-local --controller-job-id {self._spec.directory}"
        )

    def _run(self, round: Round, waiting: Sequence[Trial]) -> None:
        _log.info("%s: measuring the latency of %d models", round.name, len(waiting))
        orders = [order for one in waiting if (order := self._order(round, one)) is not None]
        mine = {order.id for order in orders}
        while True:
            running = {one.id for one in self._runner.running}
            for order in orders:
                if len(running & mine) >= self._settings.num_latency_workers:
                    break
                if self._runner.launch(order).state == RUNNING:
                    running.add(order.id)
            if not running & mine:
                return
            self._runner.wait()

    def _order(self, round: Round, trial: Trial) -> Order | None:
        """The evaluation that measures one model; another one where it came to nothing before."""
        key = trial_key(round.number, trial.number)
        ids = (id_of(self._spec, TRAIN, number * _PER_TRY + key) for number in range(_MOST_TRIES))
        id = next((one for one in ids if one not in self._before), None)
        if id is None:
            return None
        return Order(
            id=id,
            number=trial.number,
            stage=STAGE,
            parameters=trial.parameters,
            expanded=round.models[trial.number - 1].expanded,
            directory=trial.directory,
            program=self._program(trial),
            note={"round": round.number, "name": round.name},
            shape=self._settings.shape(),
        )

    def _program(self, trial: Trial) -> tuple[str, ...]:
        settings = self._settings
        calculator = Calculator(
            command=settings.latency_calculator,
            flags=settings.latency_flags,
            underscores=self._spec.flag_style != "dashes",
            worker=STAGE,
            limit_s=settings.latency_timeout_s,
        )
        return tuple(program(Path(trial.directory), calculator, self._since))

    def _wait(self, round: Round, waiting: Sequence[Trial]) -> None:
        """Wait for workers. They are on other hosts: nothing tells of them but their files, which are looked
        at; what the launcher has to say is heard at once."""
        _log.info("%s: waiting for the latencies of %d models", round.name, len(waiting))
        left = len(waiting)
        ends = time.monotonic() + self._settings.latency_wait_s
        while left and time.monotonic() < ends:
            self._runner.pause(min(self._look_every_s, max(0.0, ends - time.monotonic())))
            now = sum(not self._is_measured(one) for one in waiting)
            if now < left:
                left, ends = now, time.monotonic() + self._settings.latency_wait_s
