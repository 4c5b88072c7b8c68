"""The latencies of a round's models: measured by evaluations of the tool's own job, or waited for, where
workers beside it measure them.

They are measured when the round's trainings are over: what trains on the same node would disturb it.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nas_hpc.apps.proxy.latency import has_model, is_measured
from nas_hpc.apps.proxy.measure import Calculator
from nas_hpc.apps.proxy.rounds import LOOK_EVERY_S, Round, latency_of, trial_key
from nas_hpc.apps.trials.records import CANCELLED, RUNNING, SUCCEEDED, Trial
from nas_hpc.apps.trials.runner import Order, TrialRunner
from nas_hpc.apps.trials.spec import TRAIN, TrialsSpec, id_of

STAGE: Final = "latency"
WAIT_S: Final = 600.0
ON_PREMISES: Final = "on premises"
_MODULE: Final = "nas_hpc.apps.proxy.measure"
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
    on_premises_latency: bool = False
    """Workers that follow the tool's directory measure them."""
    latency_wait_s: float = WAIT_S
    """So long such a worker is waited for, from the last model that was measured."""

    @property
    def wanted(self) -> bool:
        """Whether somebody measures."""
        return bool(self.latency_calculator) or self.on_premises_latency


def latency_settings(values: Mapping[str, Any]) -> LatencySettings:
    """Those among the settings of a tool."""
    return LatencySettings(
        latency_calculator=tuple(values.get("latency_calculator") or ()),
        latency_flags=dict(values.get("latency_flags") or {}),
        num_latency_workers=int(values.get("num_latency_workers") or 1),
        on_premises_latency=bool(values.get("on_premises_latency")),
        latency_wait_s=float(values.get("latency_wait_s", WAIT_S)),
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

    def measure(self, round: Round, trials: Sequence[Trial], metric: str = "") -> str:
        """Come by the latencies of what ``trials``, which are over, exported; ``metric``: the name by which
        trainers report one that they know. Returns what is to be said of it, "" if nothing.

        Raises WorkFailed; Interrupted and LauncherGone pass through.
        """
        if not self._settings.wanted:
            return ""
        ended = [one for one in trials if one.state == SUCCEEDED and math.isnan(latency_of(one, metric))]
        waiting = [one for one in ended if has_model(one.directory) and not is_measured(one.directory)]
        if ended and not any(has_model(one.directory) for one in ended):
            return "no latency was measured: no trial left a model in saved_model of its directory"
        if waiting and self._settings.latency_calculator:
            self._run(round, waiting)
        elif waiting:
            self._wait(round, waiting)
        left = [str(one.number) for one in ended if math.isnan(latency_of(one, metric))]
        return f"no latency could be measured of the trials {', '.join(left)}" if left else ""

    @property
    def job_name(self) -> str:
        """Who measures, for the state file."""
        if self._settings.latency_calculator:
            return STAGE
        return ON_PREMISES if self._settings.on_premises_latency else ""

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
        """The evaluation that measures one model; another one where it was ended with the tool before."""
        key = trial_key(round.number, trial.number)
        for number in range(_MOST_TRIES):
            id = id_of(self._spec, TRAIN, number * _PER_TRY + key)
            known = self._runner.trials.get(id)
            if known is None or known.state != CANCELLED:
                return Order(
                    id=id,
                    number=trial.number,
                    stage=STAGE,
                    parameters=trial.parameters,
                    expanded=round.models[trial.number - 1].expanded,
                    directory=trial.directory,
                    program=self._program(trial),
                    note={"round": round.number, "name": round.name},
                )
        return None

    def _program(self, trial: Trial) -> tuple[str, ...]:
        settings = self._settings
        calculator = Calculator(
            command=settings.latency_calculator,
            flags=settings.latency_flags,
            underscores=self._spec.flag_style != "dashes",
        )
        words = calculator.words(Path(trial.directory))
        return (
            sys.executable,
            "-m",
            _MODULE,
            "--trial-dir",
            trial.directory,
            "--worker",
            STAGE,
            "--",
            *words,
        )

    def _wait(self, round: Round, waiting: Sequence[Trial]) -> None:
        _log.info("%s: waiting for the latencies of %d models", round.name, len(waiting))
        left = len(waiting)
        ends = time.monotonic() + self._settings.latency_wait_s
        while left and time.monotonic() < ends:
            time.sleep(min(self._look_every_s, max(0.0, ends - time.monotonic())))
            self._runner.wait(0.0)  # what the launcher has to say is heard meanwhile
            now = sum(not is_measured(one.directory) for one in waiting)
            if now < left:
                left, ends = now, time.monotonic() + self._settings.latency_wait_s
