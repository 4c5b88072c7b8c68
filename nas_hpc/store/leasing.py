"""Leases: who may run jobs of the site."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from nas_hpc.errors import LeaseLost, WrongCall
from nas_hpc.records import Lease
from nas_hpc.store.notices import SLOTS
from nas_hpc.store.prepared import Query
from nas_hpc.store.rows import lease_of
from nas_hpc.store.schema import leases
from nas_hpc.store.session import Session

_c = leases.c
_LIVE = Query(select(_c.ended).where(_c.id == bindparam("lease")).with_for_update(read=True))


def named(lease: Lease) -> str:
    """The lease's launcher, for a message."""
    return f"launcher {lease.id[:8]} (host {lease.host}, process {lease.pid})"


def open_lease(session: Session, lease: Lease, ending: Sequence[str], proven: bool, exclusive: bool) -> None:
    """See ``Store.open_lease``."""
    now = time.time()
    held = {
        row.id: lease_of(row) for row in session.rows(select(leases).where(_c.ended == 0).with_for_update())
    }
    for dead in ending:
        if dead not in held:
            raise LeaseLost(
                f"the lease {dead[:8]} is not held any more: another launcher has taken over; look again"
            )
        if not proven and held[dead].expires > now:
            left_s = held[dead].expires - now
            raise LeaseLost(
                f"{named(held[dead])} may be alive: its lease runs for {left_s:.0f} s more; wait or end it"
            )
        session.change(update(leases).where(_c.id == dead).values(ended=now))
        session.tell(SLOTS, dead)
    others = [one for key, one in held.items() if key not in ending]
    if exclusive and others:
        raise LeaseLost(f"{named(others[0])} runs this site's jobs; one launcher at a time may")
    if session.rows(select(_c.id).where(_c.id == lease.id)):
        raise WrongCall(f"the lease {lease.id} exists already; every launcher has one of its own")
    session.change(
        insert(leases).values(
            id=lease.id,
            host=lease.host,
            boot_id=lease.boot_id,
            pid=lease.pid,
            start_time=lease.start_time,
            workflow=lease.workflow,
            expires=lease.expires,
            ended=0.0,
            slots=lease.slots,
        )  # fmt: skip
    )
    session.tell(SLOTS, lease.id)


def check_live(session: Session, lease: str) -> None:
    """Raise LeaseLost if ``lease`` is unknown or has ended."""
    _check(lease, session.fetch(_LIVE, {"lease": lease}))


def asked_live(session: Session, lease: str) -> Callable[[], None]:
    """``check_live``, which is done when what is returned is called: the database is asked now."""
    rows = session.sending.ask(_LIVE, {"lease": lease})
    return lambda: _check(lease, rows())


def _check(lease: str, rows: Sequence[Any]) -> None:
    if not rows:
        raise LeaseLost(f"the lease {lease[:8]!r} is unknown to this database")
    if rows[0].ended:
        ago_s = max(0.0, time.time() - rows[0].ended)
        raise LeaseLost(
            f"the lease {lease[:8]} was ended {ago_s:.0f} s ago: this launcher may write nothing more"
        )


def renew_lease(session: Session, lease: str, expires: float) -> None:
    """See ``Store.renew_lease``."""
    check_live(session, lease)
    session.change(update(leases).where(_c.id == lease).values(expires=expires))


def end_leases(session: Session, lease: str, dead: Sequence[Lease]) -> list[Lease]:
    """See ``Store.end_leases``."""
    check_live(session, lease)
    now = time.time()
    seen = {one.id: one.expires for one in dead}
    rows = session.rows(select(leases).where(_c.id.in_(list(seen)), _c.ended == 0).with_for_update())
    ended = [one for one in map(lease_of, rows) if one.expires == seen[one.id]]
    for one in ended:
        session.change(update(leases).where(_c.id == one.id).values(ended=now))
        session.tell(SLOTS, one.id)
    return [replace(one, ended=now) for one in ended]


def tell_slots(session: Session, lease: str, slots: int) -> None:
    """See ``Store.tell_slots``."""
    check_live(session, lease)
    session.change(update(leases).where(_c.id == lease).values(slots=slots))
    session.tell(SLOTS, lease)


def close_lease(session: Session, lease: str, now: float) -> None:
    """See ``Store.close_lease``."""
    session.change(update(leases).where(_c.id == lease, _c.ended == 0).values(ended=now))
    session.tell(SLOTS, lease)


def read_leases(session: Session, live_only: bool) -> list[Lease]:
    """See ``Store.leases``."""
    query = select(leases).order_by(_c.number)
    return [lease_of(row) for row in session.rows(query.where(_c.ended == 0) if live_only else query)]
