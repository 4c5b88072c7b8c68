"""Processes that tests start and kill: ``python -m tests.store.worker ROLE URL ...``."""

from __future__ import annotations

import itertools
import sys

from nas_hpc.records import new_id
from nas_hpc.states import RUNNABLE, Actor
from nas_hpc.store import Claim, Finish, JobFilter, open_store
from nas_hpc.store.sql import SqlStore
from tests.store.supply import ended, evaluation, hold

BATCH = 50
SHARE = 180
"""Most jobs that one claiming process takes, so that several have to."""


def say(*words: object) -> None:
    """A line for the parent."""
    print(*words, flush=True)


def claim_all(store: SqlStore) -> None:
    """Claim what is runnable, a few at a time, until nothing is or ``SHARE`` are won; print the won ones."""
    mine = hold(store)
    say("ready")
    sys.stdin.readline()
    count = 0
    while count < SHARE and (jobs := store.jobs(JobFilter(states=RUNNABLE))):
        for start in range(0, len(jobs), 7):
            won = store.claim(mine, [Claim(job.id) for job in jobs[start : start + 7]])
            count += len(won)
            for job in won:
                say(job.id, job.attempt)
            if count >= SHARE:
                break


def add_for_ever(store: SqlStore) -> None:
    """Insert evaluations in batches; print the last seq of each batch after its commit."""
    creator = new_id()
    say(creator)
    for first in itertools.count(1, BATCH):
        store.add_jobs([evaluation(creator, seq) for seq in range(first, first + BATCH)], Actor.SEARCH)
        say(first + BATCH - 1)


def exchange_for_ever(store: SqlStore) -> None:
    """Claim one job after the other and finish it; print its id after each commit of its end."""
    mine = hold(store)
    say(mine)
    (search,) = sys.argv[3:]
    finishes: list[Finish] = []
    for job in store.jobs(JobFilter(creator=search)):
        finished, claimed = store.exchange(mine, finishes, [Claim(job.id)])
        for one in finished:
            say(one.job.id)
        finishes = [ended(one) for one in claimed]


def keep_locked(store: SqlStore) -> None:
    """Hold a transaction open until the parent closes the pipe."""
    with store.transaction():
        hold(store)
        say("locked")
        sys.stdin.read()


def take_over(store: SqlStore) -> None:
    """Try to end the lease ``argv[3]``; print who won."""
    from nas_hpc.errors import LeaseLost
    from tests.store.supply import lease

    say("ready")
    sys.stdin.readline()
    try:
        store.open_lease(lease(), ending=[sys.argv[3]], proven=True, exclusive=True)
    except LeaseLost:
        say("lost")
    else:
        say("won")


ROLES = {
    "claim": claim_all, "add": add_for_ever, "exchange": exchange_for_ever, "lock": keep_locked,
    "take": take_over,
}  # fmt: skip

if __name__ == "__main__":
    with open_store(sys.argv[2]) as opened:
        ROLES[sys.argv[1]](opened)
