"""What ``nas-hpc doctor`` says of the job database."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nas_hpc.cli.checks import BAD, OK, WARN, Finding
from nas_hpc.cli.context import open_database
from nas_hpc.cli.database_status import version_of
from nas_hpc.errors import NasHpcError
from nas_hpc.site import Site
from nas_hpc.store.base import JobFilter, Store
from nas_hpc.store.place import place_of
from nas_hpc.store.server import State, look

COMMIT_WARN_S = 0.05
"""A launcher commits up to a hundred times a second, in groups."""
_COMMITS = 5
_NO_CHANGE = "UPDATE counters SET value = value WHERE name = 'jobs'"
_NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def check_database(site: Site) -> Iterator[Finding]:
    """Whether it opens, of which kind it is, what is in it, how long a commit takes."""
    try:
        kind = place_of(site).kind
        with open_database(site, read_only=True) as store:
            counts = store.counts(JobFilter())
            apps = store.apps()
            version = version_of(store, kind)
    except NasHpcError as error:
        if _is_down(site):
            yield Finding("database", WARN, error.message, "or let a launcher start it")
        else:
            advice = "" if "nas-hpc db" in error.message else "restore it from a copy, or make a new site"
            yield Finding("database", BAD, error.message, advice)
        return
    states = ", ".join(f"{count} {state.value}" for state, count in counts.items() if count) or "no jobs"
    yield Finding("database", OK, f"{_NAMES[kind]} {version}: {states}; {len(apps)} applications")
    yield from _check_commits(site)
    if not apps:
        yield Finding("applications", WARN, "none is registered", "nas-hpc app --sync")


def _is_down(site: Site) -> bool:
    """Whether the site has a server of its own that a launcher would start."""
    try:
        return place_of(site).owned and look(site).state in (State.STOPPED, State.DIED)
    except NasHpcError:
        return False


def _check_commits(site: Site) -> Iterator[Finding]:
    try:
        site.check_writable()
        with open_database(site) as store:
            taken_s = commit_s(store)
    except NasHpcError:  # told by other checks
        return
    if taken_s is None:
        return
    text = f"a small one takes {taken_s * 1e3:.1f} ms"
    if taken_s > COMMIT_WARN_S:
        yield Finding("commits", WARN, text, "have the site, or its database, on a faster disk")
    else:
        yield Finding("commits", OK, text)


def commit_s(store: Store) -> float | None:
    """How long a commit that changes nothing takes, the median of a few; None if another process commits."""
    raw = getattr(store, "raw", None)
    if raw is None:
        return None
    driver, taken = raw(), []
    for _ in range(_COMMITS):
        begin = time.perf_counter()
        driver.execute(_NO_CHANGE)
        taken.append(time.perf_counter() - begin)
    return sorted(taken)[_COMMITS // 2]
