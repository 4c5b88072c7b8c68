"""What was asked of a search of trials, and where its files are: ``search_job_spec.json``.

Resume, the listings and later stages read it; nothing else has to be remembered by anybody.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nas_hpc.errors import WrongCall
from nas_hpc.trial.jsonfiles import read_json, write_json

SPEC_FILE = "search_job_spec.json"
ALGORITHMS = ("random", "evo", "ppo", "ambs")
STYLES = ("dashes", "underscores")
SEARCH, TRAIN = "search", "train"
"""Stages, and kinds of jobs: stage 1 tries what an algorithm suggests, stage 2 trains chosen ones in full."""
MOST = 1_000_000
"""Trials of a stage."""
_SECOND, _TIMES = MOST, 10 * MOST


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialsSpec:
    """One job of trials."""

    job_name: str
    directory: str
    """``<root>/<job>_<YYYYmmdd_HHMMSS>``."""
    kind: str = SEARCH
    """``search``, or ``train``: the full training of ``chosen`` alone."""
    space: str = ""
    """Where the search space is: "module.name" or "file.py:name"."""
    trainer: tuple[str, ...] = ()
    """The user's program and its first arguments."""
    metric: str = ""
    """The metric that is the reward; greater is better."""
    max_trials: int = 10
    max_parallel: int = 2
    max_failed: int = 3
    """At so many failed trials the search ends; 0: never."""
    search_flags: Mapping[str, str] = field(default_factory=dict)
    train_flags: Mapping[str, str] | None = None
    """None: no stage 2 within the search."""
    train_frequency: int = 0
    """After so many finished trials each the best ones are trained in full; 0: never."""
    train_max_parallel: int = 1
    algorithm: str = "random"
    seed: int | None = None
    nodes_per_trial: int = 1
    ranks_per_node: int = 1
    threads_per_rank: int = 1
    gpus_per_rank: int = 0
    trials_per_node: int = 0
    """So many share a node; 0: as many as run at once, at most its cores."""
    trial_timeout_s: float = 0.0
    time_limit_s: float = 0.0
    required_metrics: tuple[str, ...] = ()
    """Further metrics that every trial has to report."""
    reward_scaling: tuple[float, ...] = ()
    """(factor, offset): the reward is factor · value + offset."""
    metric_format: str = ""
    """``vertex``: reports are written as Vertex AI NAS has them."""
    flag_style: str = "dashes"
    environ: Mapping[str, str] = field(default_factory=dict)
    made_in: Mapping[str, str] = field(default_factory=dict)
    """In which environment it was asked for, see ``apps.trials.environment``: for the record alone."""
    search_directory: str = ""
    """Of a ``train`` job: the directory of the search whose trials are trained."""
    chosen: tuple[int, ...] = ()
    """Of a ``train`` job: those trials, in the order of the new ones."""
    again: Mapping[str, int] = field(default_factory=dict)
    """How often trials were asked to run again, by ``<stage>/<number>``."""
    latency_calculator: tuple[str, ...] = ()
    """A program by which each trial measures the model that it has exported."""
    latency_flags: Mapping[str, str] = field(default_factory=dict)
    latency_timeout_s: float = 1800.0
    on_premises_latency: bool = False
    """Workers that follow the search's directory measure them."""
    latency_wait_s: float = 600.0
    """So long a trainer waits for such a worker."""
    use_checkpoint: bool = False
    """Whether a stage-2 trial goes on from the checkpoint of the trial that it trains."""

    def trial_directory(self, stage: str, number: int) -> Path:
        """``nas/search/<k>`` or ``nas/train/<k>`` below the job's directory."""
        return Path(self.directory, "nas", stage, str(number))


def id_of(spec: TrialsSpec, stage: str, number: int) -> int:
    """The id of a trial's evaluation in its job: another one each time that it was asked to run again."""
    return spec.again.get(f"{stage}/{number}", 0) * _TIMES + (_SECOND if stage == TRAIN else 0) + number


def own_stage(spec: TrialsSpec) -> str:
    """The stage of the trials that a job is made for; a search has others beside them."""
    return TRAIN if spec.kind == TRAIN else SEARCH


def trial_of(id: int) -> tuple[str, int, int]:
    """(stage, number, how often it had been asked to run again) of the trial with this id."""
    times, rest = divmod(id, _TIMES)
    return (TRAIN, rest - _SECOND, times) if rest > _SECOND else (SEARCH, rest, times)


def nodes_of_training(spec: TrialsSpec) -> float:
    """The nodes that one trial has, or its share of one where several are packed onto it."""
    if spec.nodes_per_trial > 1 or spec.ranks_per_node > 1:
        return float(spec.nodes_per_trial)
    packed = os.environ.get("DEEPHYPER_WORKERS_PER_NODE", "")  # what the job was made with
    return 1.0 / (spec.trials_per_node or (int(packed) if packed.isdigit() else 0) or 1)


def make_directory(root: str, job_name: str) -> Path:
    """Make ``<root>/<job>_<YYYYmmdd_HHMMSS>``, which no other job has.

    Raises WrongCall where that cannot be.
    """
    moment = time.time()
    for later in range(3600):
        stamp = time.strftime("%Y%m%d_%H%M%S", time.localtime(moment + later))
        path = Path(root, f"{job_name}_{stamp}")
        try:
            Path(root).mkdir(parents=True, exist_ok=True)
            path.mkdir()
            return path
        except FileExistsError:
            if not os.path.isdir(root):
                raise WrongCall(f"--root-output-dir {root!r} is no directory: give one") from None
        except OSError as error:
            raise WrongCall(
                f"--root-output-dir {root!r}: a directory cannot be made there ({error.strerror}): give one "
                "that you may write to and that all nodes see"
            ) from error
    raise WrongCall(f"--root-output-dir {root!r} has a directory for every second of this hour: give another")


def write_spec(spec: TrialsSpec) -> None:
    """Leave ``spec`` in its directory. Raises OSError."""
    write_json(Path(spec.directory, SPEC_FILE), dataclasses.asdict(spec))


def read_spec(directory: Path | str) -> TrialsSpec:
    """What was asked of the job in ``directory``, wherever that is now. Raises WrongCall if it is none."""
    path = Path(directory, SPEC_FILE)
    body = read_json(path)
    if not isinstance(body, dict):
        what = "is no JSON" if path.exists() else "is not there"
        raise WrongCall(f"{str(directory)!r} is no directory of a search of trials: {path} {what}")
    known = {one.name for one in dataclasses.fields(TrialsSpec)}
    values = {name: value for name, value in body.items() if name in known}
    try:
        for name in ("trainer", "chosen", "required_metrics", "reward_scaling", "latency_calculator"):
            values[name] = tuple(values.get(name) or ())
        return TrialsSpec(**{**values, "directory": os.path.abspath(directory)})
    except TypeError as error:
        raise WrongCall(f"{path} was not written by a search of trials: {error}") from error


def flag_words(flags: Mapping[str, str]) -> list[str]:
    """``--k=v`` for each; a value is kept whole."""
    return [f"--{name}={value}" for name, value in flags.items()]
