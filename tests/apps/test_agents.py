"""A search by agents, the first one alone: steps, stragglers, failures, resume. With others: test_ppo.py."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas_hpc.apps import checkpoint
from nas_hpc.apps.agents import Division, Leader
from nas_hpc.apps.architectures import load_searched
from nas_hpc.apps.copies import Shared, learn
from nas_hpc.apps.exchange import Alone, Said
from nas_hpc.apps.progress import Progress
from nas_hpc.apps.results import ResultsFile
from nas_hpc.errors import WorkFailed, WrongCall
from nas_hpc.search.ppo import Episodes, Settings
from tests.apps import sequences
from tests.apps.played_agents import Played
from tests.apps.support import Wrap, evaluator_of, rows
from tests.apps.test_resume import Fuse, Kill
from tests.evaluator.peer import Peer
from tests.support import examples, wait_until

EVALUATIONS = 26
QUICK = Settings(network="ppo_lstm_32", noptepochs=2)


def lead(
    peer: Peer,
    directory: Path,
    *,
    max_evals: int = EVALUATIONS,
    attempt: int = 1,
    division: Division = Division(),  # noqa: B008
    seed: int = 5,
    wrap: Wrap = lambda whole: whole,
    problem: str = "Problem",
    settings: Settings = QUICK,
    time_limit_s: float = 0.0,
    group: Alone | None = None,
    hub: Any = None,
) -> Leader:
    """Run a search of one agent in this process."""
    searched = load_searched(f"tests.apps.sequences.{problem}")
    assert searched.space is not None
    with evaluator_of(peer, attempt) as real:
        evaluator = wrap(real)
        results = ResultsFile(directory, searched.names, cells=searched.cells)
        leader = Leader(
            evaluator,
            Progress(evaluator, results, max_evals=max_evals, time_limit_s=time_limit_s),
            Shared(tuple(searched.space.choices), settings, max_evals, seed),
            division,
            group=group or Alone(),
            hub=hub,
            directory=directory,
            baselines=searched.decisions.starting_point_asdict,
        )
        leader.run()
        return leader


def sizes(peer: Peer) -> dict[int, int]:
    """How many evaluations each step had."""
    return dict(Counter(row.ask.data.get("step", -1) for row in peer.rows.values()))


def test_steps_are_as_large_as_there_are_evaluators_and_the_last_one_has_the_rest(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=8) as peer:
        lead(peer, tmp_path)
        assert sizes(peer) == {0: 8, 1: 8, 2: 8, 3: 2}
        assert dict(peer.ledger) == dict.fromkeys(range(1, EVALUATIONS + 1), 1)
        found = rows(tmp_path)
        assert [int(row["seq"]) for row in found] == [done.seq for done in peer.done]
        for row, done in zip(found, peer.done, strict=True):
            assert [int(row[str(place)]) for place in range(8)] == done.config["arch_seq"]
            assert float(row["objective"]) == done.objective
        wait_until(lambda: peer.reports and peer.reports[-1].done == EVALUATIONS, what="the last report")


def test_baselines_are_evaluated_first_and_count(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=4) as peer:
        leader = lead(peer, tmp_path, max_evals=10, problem="Begun")
        assert peer.configs[0] == {"arch_seq": [0] * len(sequences.BEST)}
        assert sizes(peer) == {-1: 1, 0: 4, 1: 4, 2: 1}
        assert leader._learned == 9


def test_failures_are_worth_as_little_as_the_worst_success(tmp_path: Path) -> None:
    seen: list[float] = []

    def observing(config: Mapping[str, Any]) -> float:
        if config["arch_seq"][0] == 0:
            raise ValueError("no network")
        return -1.0 - sequences.run(dict(config))

    with Peer(tmp_path / "endpoint.json", observing, workers=6) as peer:
        leader = lead(peer, tmp_path, max_evals=24)
        succeeded = [done.objective for done in peer.done if done.objective is not None]
        seen = list(leader._ppo.state()["rewards"])
        assert len(succeeded) < 24
        assert min(seen) == min(succeeded)
        assert max(seen) == max(succeeded) < 0
        assert leader._worst.objective == min(succeeded)


def test_a_straggler_holds_nobody_and_counts_when_it_is_back(tmp_path: Path) -> None:
    free, slow = threading.Event(), threading.Lock()

    def run(config: Mapping[str, Any]) -> float:
        if slow.acquire(blocking=False):  # the first one only
            assert free.wait(60)
        elif peer.ledger[30] and not free.is_set():
            free.set()
        return sequences.run(dict(config))

    with Peer(tmp_path / "endpoint.json", run, workers=8) as peer:
        leader = lead(peer, tmp_path, max_evals=40, division=Division(every=True, enough=0.8))
        assert free.is_set(), "evaluation 30 ran while one of the first eight did"
        assert leader._learned == 40, "none is lost, and none counts twice"
        assert dict(peer.ledger) == dict.fromkeys(range(1, 41), 1)


def test_without_use_all_workers_a_step_waits_for_its_whole_batch(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=4) as peer:
        peer.hold.clear()
        done: list[int] = []

        def release() -> None:
            wait_until(lambda: len(peer.ledger) == 4, what="the first batch")
            done.append(len(peer.submits))
            peer.hold.set()

        thread = threading.Thread(target=release)
        thread.start()
        lead(peer, tmp_path, max_evals=8)
        thread.join(60)
        assert done == [1]
        assert sizes(peer) == {0: 4, 1: 4}


def test_the_time_limit_ends_the_search_with_what_is_there(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=4) as peer:
        peer.hold.clear()
        with pytest.raises(WorkFailed, match="all 4 evaluations failed|no evaluation was finished"):
            lead(peer, tmp_path, time_limit_s=1.0)
        ended = rows(tmp_path)
        assert all(row["outcome"] == "killed" for row in ended)
        peer.hold.set()
        leader = lead(peer, tmp_path, attempt=2)
        assert leader._learned == EVALUATIONS - len(ended), "what was ended teaches nothing"
        assert len(rows(tmp_path)) == EVALUATIONS


# -- several -------------------------------------------------------------------------------------------
def batches(peer: Peer) -> Counter[tuple[int, int]]:
    """How many evaluations each step and agent had."""
    return Counter((row.ask.data["step"], row.ask.data["agent"]) for row in peer.rows.values())


@pytest.mark.parametrize(("every", "each"), [(False, [2, 2, 2]), (True, [3, 3, 2])])
def test_several_agents_share_the_evaluators_and_the_limit(
    tmp_path: Path, every: bool, each: list[int]
) -> None:
    others = Played(3)
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=8) as peer:
        leader = lead(peer, tmp_path, division=Division(every), group=others, hub=others)
        found = batches(peer)
        assert [found[0, agent] for agent in range(3)] == each
        assert sum(found.values()) == leader._learned == EVALUATIONS
        last = max(step for step, _ in found)
        assert sum(found[last, agent] for agent in range(3)) == EVALUATIONS - last * sum(each)
        assert {copy.digest() for copy in others.copies.values()} == {leader._ppo.digest()}
        drawn = [peer.rows[seq].ask.config["arch_seq"] for seq in range(1, sum(each) + 1)]
        assert drawn[: each[0]] != drawn[each[0] : 2 * each[0]], "each draws its own"


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_search_goes_on_with_more_or_fewer_agents(tmp_path: Path, size: int) -> None:
    others = Played(3)
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=8) as peer:
        fuse = Fuse(9, True)
        with pytest.raises(Kill):
            lead(peer, tmp_path, group=others, hub=others, wrap=fuse.wrap)
        begun = len(peer.rows)
        now = Played(size) if size > 1 else None
        leader = lead(peer, tmp_path, attempt=2, group=now or Alone(), hub=now)
        assert 0 < begun < EVALUATIONS
        assert leader._learned == EVALUATIONS
        assert dict(peer.ledger) == dict.fromkeys(range(1, EVALUATIONS + 1), 1)


# -- resume --------------------------------------------------------------------------------------------
class _Disk:
    """Lets every checkpoint count in a fuse, too."""

    def __init__(self, fuse: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
        write = checkpoint.write
        monkeypatch.setattr(checkpoint, "write", lambda *words: fuse.call(write, *words))


@cache
def _uninterrupted() -> tuple[list[Any], str]:
    with tempfile.TemporaryDirectory() as place, Peer(Path(place, "endpoint.json"), sequences.run, 5) as peer:
        leader = lead(peer, Path(place))
        return [peer.rows[seq].ask.config for seq in sorted(peer.rows)], leader._ppo.digest()


def _interrupted(points: list[tuple[int, bool]], *, lose: bool = False) -> None:
    """A search that dies at each of these calls; with ``lose`` its checkpoints are lost, too."""
    with tempfile.TemporaryDirectory() as place, Peer(Path(place, "endpoint.json"), sequences.run, 5) as peer:
        for attempt, (after, effect) in enumerate(points, 1):
            fuse = Fuse(after, effect)
            with pytest.MonkeyPatch.context() as patch:
                _Disk(fuse, patch)
                with contextlib.suppress(Kill):
                    lead(peer, Path(place), attempt=attempt, wrap=fuse.wrap)
            for file in Path(place).glob("ppo.checkpoint*") if lose else ():
                file.unlink()
        leader = lead(peer, Path(place), attempt=len(points) + 1)
        assert (
            [peer.rows[seq].ask.config for seq in sorted(peer.rows)],
            leader._ppo.digest(),
        ) == _uninterrupted()
        assert dict(peer.ledger) == dict.fromkeys(range(1, EVALUATIONS + 1), 1), "each ran once"
        assert [int(row["seq"]) for row in rows(Path(place))] == [done.seq for done in peer.done]


@pytest.mark.parametrize(("points", "lose"), [([(7, True), (8, False)], False), ([(11, False)], True)])
def test_a_search_that_dies_at_some_points_goes_on_as_if_uninterrupted(
    points: list[tuple[int, bool]], lose: bool
) -> None:
    _interrupted(points, lose=lose)


_points = st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=1, max_size=3)


@pytest.mark.slow
@given(_points, st.booleans())
@settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True, max_examples=examples(5)
)
def test_a_search_that_dies_anywhere_goes_on_as_if_uninterrupted(
    points: list[tuple[int, bool]], lose: bool
) -> None:
    _interrupted(points, lose=lose)


def test_a_raised_limit_goes_on_from_the_finished_search(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=5) as peer:
        before = lead(peer, tmp_path, max_evals=10)
        after = lead(peer, tmp_path, max_evals=20, attempt=2)
        assert (before._step, after._step, after._learned) == (2, 4, 20)
        assert dict(peer.ledger) == dict.fromkeys(range(1, 21), 1)
        lead(peer, tmp_path, max_evals=20, attempt=3)
        assert len(peer.rows) == 20


def test_records_of_other_settings_are_kept_and_nothing_is_learned_from_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=5) as peer:
        lead(peer, tmp_path, max_evals=10)
        for file in tmp_path.glob("ppo.checkpoint*"):
            file.unlink()
        caplog.set_level(logging.WARNING, "nas_hpc.apps")
        leader = lead(peer, tmp_path, max_evals=30, attempt=2, seed=6)
        assert len(peer.rows) == 30
        assert leader._learned == 20
    assert sum("other architectures" in line for line in caplog.messages) == 1


def test_a_checkpoint_of_another_network_is_refused_in_a_line(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=5) as peer:
        lead(peer, tmp_path, max_evals=10)
        with pytest.raises(WrongCall, match="checkpoint does not fit it: .*another network"):
            lead(peer, tmp_path, max_evals=20, attempt=2, settings=Settings(network="ppo_lstm_64"))


def test_a_disk_that_is_full_for_checkpoints_is_told_once_and_the_search_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*words: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=5) as peer:
        lead(peer, tmp_path)
        assert len(peer.rows) == EVALUATIONS
    assert sum("No space left on device" in line for line in caplog.messages) == 1


# -- what is refused, before anything is submitted -------------------------------------------------------
class Three(Alone):
    """Three agents, as far as the first one is asked before they do anything."""

    size = 3


@pytest.mark.parametrize(
    ("workers", "keywords", "said"),
    [
        (2, {"group": Three()}, "3 agents and 2 evaluators: 1 agent would get none"),
        (9, {"max_evals": 8, "group": Three()}, "--max-evals 8 is less than one batch .* give 9 or more"),
        (6, {"settings": Settings(nminibatches=4)}, "--nminibatches 4 does not divide .* 6 .* divisor of 6"),
        (3, {"settings": Settings(nminibatches=4), "division": Division(True)}, "give 3 at most"),
    ],
)
def test_what_cannot_be_with_these_evaluators_is_refused(
    tmp_path: Path, workers: int, keywords: dict[str, Any], said: str
) -> None:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=workers) as peer:
        with pytest.raises(WrongCall, match=said) as caught:
            lead(peer, tmp_path, **keywords)
        assert "\n" not in caught.value.message
        assert not peer.submits
    assert not (tmp_path / "results.csv").exists()


class Other:
    """An agent whose policy is another one."""

    def send(self, agent: int, kind: str, plain: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self.step = plain.get("step")

    def gather(self) -> dict[int, Said]:
        return {1: Said(1, "batch", {"digest": "of another"}, {})}


class Two(Alone):
    size = 2


def test_copies_that_differ_end_the_search_with_one_line(tmp_path: Path) -> None:
    with Peer(tmp_path / "endpoint.json", sequences.run, workers=4) as peer:
        with pytest.raises(
            WorkFailed, match="agent 1 has another policy than the first one at step 0"
        ) as caught:
            lead(peer, tmp_path, group=Two(), hub=Other())
        assert "\n" not in caught.value.message
        assert not peer.submits


# -- learning together -----------------------------------------------------------------------------------
def test_two_agents_learn_what_one_learns_of_the_same_episodes() -> None:
    """Their sums are those of all episodes; played with two copies whose threads meet at every sum."""
    shared = Shared((4, 2, 3), QUICK, 100, 1)
    whole = shared.make().sample(6, np.random.default_rng(2))
    rewards = np.array([0.5, 1.0, -1.0, 2.0, 0.25, 0.75])
    alone = shared.make()
    learn(alone, Alone(), whole, rewards, rewards, shared.random(0, 0), 0)
    meeting: Callable[[int], Alone] = _Meeting().place
    copies = [shared.make(), shared.make()]
    parts = [slice(0, 2), slice(2, 6)]

    def one(agent: int) -> None:
        mine, group = whole.take(parts[agent]), meeting(agent)
        learn(copies[agent], group, mine, rewards[parts[agent]], rewards, shared.random(agent, 0), 0)

    threads = [threading.Thread(target=one, args=(agent,)) for agent in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert copies[0].digest() == copies[1].digest()
    assert copies[0].digest() != shared.make().digest()
    together, single = (copy.state()["parameters"] for copy in (copies[0], alone))
    assert np.abs(together - single).max() < 1e-4


class _Meeting:
    """Adds up what two threads have."""

    def __init__(self) -> None:
        self.values: list[Any] = [None, None]
        self.barrier = threading.Barrier(2, timeout=60)

    def place(self, agent: int) -> Alone:
        meeting = self

        class Place(Alone):
            rank, size = agent, 2

            def add(self, values: Any) -> Any:
                meeting.values[agent] = values
                meeting.barrier.wait()
                total = meeting.values[0] + meeting.values[1]
                meeting.barrier.wait()
                return total

            def mean(self, gradient: Any, weight: int) -> Any:
                total = self.add(np.append(gradient.astype(np.float64) * weight, weight))
                return (total[:-1] / max(1.0, total[-1])).astype(np.float32), int(total[-1])

        return Place()


def test_agents_draw_by_random_numbers_of_their_own_that_a_restart_repeats() -> None:
    shared = Shared((4, 2, 3), QUICK, 100, 1)
    drawn = [shared.make().sample(4, shared.random(agent, step)) for agent in (0, 1) for step in (0, 1)]
    again = [shared.make().sample(4, shared.random(agent, step)) for agent in (0, 1) for step in (0, 1)]
    texts = [Episodes.join([one]).actions.tobytes() for one in drawn]
    assert len(set(texts)) == 4
    assert texts == [one.actions.tobytes() for one in again]
