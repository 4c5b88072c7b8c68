"""What launchers tell each other through the database, and requests that are carried out once."""

from __future__ import annotations

import time

import pytest

from nas_hpc.errors import LeaseLost
from nas_hpc.store.sql import SqlStore
from tests.store.supply import add, hold, person_job


def test_the_slots_of_a_launcher_are_kept_until_its_lease_ends(store: SqlStore) -> None:
    first, second = hold(store), hold(store)
    store.tell_slots(first, 507)
    assert {lease.id: lease.slots for lease in store.leases()} == {first: 507, second: 0}
    store.close_lease(first, 1.0)
    with pytest.raises(LeaseLost):
        store.tell_slots(first, 3)


def test_a_request_is_carried_out_once_unless_its_transaction_fails(store: SqlStore) -> None:
    def fail() -> None:
        with store.transaction():
            assert store.first_time("a")
            add(store, person_job())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.transaction():
        assert store.first_time("a")
        assert not store.first_time("a")
        assert store.first_time("b")
    assert not store.first_time("a")


def test_a_dead_launcher_s_lease_is_ended_once_and_one_that_was_renewed_meanwhile_lives(
    store: SqlStore,
) -> None:
    mine, dead, back = hold(store), hold(store), hold(store)
    seen = [lease for lease in store.leases() if lease.id != mine]
    store.renew_lease(back, seen[0].expires + 100)
    assert [lease.id for lease in store.end_leases(mine, seen)] == [dead]
    assert store.end_leases(mine, seen) == [], "the second who finds it dead is told that it was not he"
    assert {lease.id for lease in store.leases()} == {mine, back}
    with pytest.raises(LeaseLost):
        store.end_leases(dead, seen)


def test_old_records_of_requests_are_forgotten_but_those_that_may_be_repeated(store: SqlStore) -> None:
    ids = [f"{number:04}" for number in range(1200)]
    with store.transaction():
        assert all(store.first_time(one) for one in ids)
    store.forget_requests(time.time() - 60, [])
    assert not store.first_time(ids[0])
    store.forget_requests(time.time() + 60, ids[:2])
    assert [store.first_time(one) for one in ids[:4]] == [False, False, True, True]
    assert store.first_time(ids[-1])
