"""Tables of the job database. ``SCHEMA`` changes with every change here that an older program would misread.

What is searched is a column with an index; the rest of a job is one JSON text, ``body``. Jobs and events
carry numbers drawn from ``counters`` in the transaction that inserts them, so that a reader who saw number
n will never find a smaller one appear later, on any database.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.types import BigInteger

SCHEMA = 3

UPGRADES: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE apps ADD COLUMN body TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE edges ADD COLUMN failure TEXT NOT NULL DEFAULT 'fail'",
    ),
    2: (
        "ALTER TABLE leases ADD COLUMN slots INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE requests (id TEXT NOT NULL PRIMARY KEY, time DOUBLE PRECISION NOT NULL)",
    ),
}
"""What brings a database of the schema to the next one."""

metadata = MetaData()
_Text = Text().with_variant(TEXT(collation="C"), "postgresql")  # compared by bytes, wherever the server is
_Number = BigInteger().with_variant(Integer, "sqlite")  # SQLite: the primary key is the row's own number

meta = Table(
    "meta",
    metadata,
    Column("key", _Text, primary_key=True),
    Column("value", _Text, nullable=False),
)

counters = Table(
    "counters",
    metadata,
    Column("name", _Text, primary_key=True),
    Column("value", _Number, nullable=False),
)
COUNTERS = ("jobs", "events")

apps = Table(
    "apps",
    metadata,
    Column("name", _Text, primary_key=True),
    Column("executable", _Text, nullable=False),
    Column("description", _Text, nullable=False),
    Column("restartable", Boolean, nullable=False),
    Column("body", _Text, nullable=False, server_default="{}"),  # JSON: environment script, stages
)

jobs = Table(
    "jobs",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=False),  # order of insertion
    Column("id", _Text, nullable=False, unique=True),
    Column("name", _Text, nullable=False),
    Column("workflow", _Text, nullable=False),
    Column("application", _Text),  # NULL: an evaluation
    Column("creator", _Text),  # NULL, with seq: a job of a person
    Column("seq", _Number),
    Column("state", _Text, nullable=False),
    Column("lease", _Text),  # NULL unless RUNNING or held for a script before or after
    Column("attempt", Integer, nullable=False),
    Column("unmet", Integer, nullable=False),  # parents that are not JOB_FINISHED
    Column("created", Double, nullable=False),
    Column("final_event", _Number),  # event that made it final; NULL while it is not
    Column("body", _Text, nullable=False),
    UniqueConstraint("creator", "seq"),  # NULLs are distinct: jobs of persons do not collide
)
_j: Any = jobs.c
Index("jobs_state", _j.state, _j.workflow)
Index("jobs_name", _j.name)
_partial = {"jobs_application": (_j.application,), "jobs_lease": (_j.lease,)}
for _name, _columns in _partial.items():
    _where = _columns[0].is_not(None)
    Index(_name, *_columns, sqlite_where=_where, postgresql_where=_where)
Index(
    "jobs_final",
    _j.creator,
    _j.final_event,
    sqlite_where=_j.final_event.is_not(None),
    postgresql_where=_j.final_event.is_not(None),
)

edges = Table(  # jobs.body holds the parents in their order; this is the index over them
    "edges",
    metadata,
    Column("parent", _Number, ForeignKey("jobs.number"), primary_key=True),
    Column("child", _Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, index=True),
    Column("failure", _Text, nullable=False, server_default="fail"),  # of the child: records.ParentFailure
)

attempts = Table(
    "attempts",
    metadata,
    Column(
        "job", _Number, ForeignKey("jobs.number", ondelete="CASCADE"), primary_key=True, autoincrement=False
    ),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("lease", _Text, nullable=False),
    Column("nodes", _Text, nullable=False),  # JSON lists
    Column("cores", _Text, nullable=False),
    Column("gpus", _Text, nullable=False),
    Column("claimed", Double, nullable=False),
    Column("outcome", _Text),  # NULL while it runs, as all that follows
    Column("objective", Double),
    Column("metadata", _Text),  # JSON
    Column("reason", _Text),
    Column("return_code", Integer),
    Column("start", Double),
    Column("end", Double),
    Column("tail", _Text),
)

events = Table(  # append-only: a trigger refuses changes, and deletion while the job exists
    "events",
    metadata,
    Column("id", _Number, primary_key=True, autoincrement=False),
    Column("job", _Number, nullable=False, index=True),
    Column("time", Double, nullable=False),
    Column("old", _Text, nullable=False),
    Column("new", _Text, nullable=False),
    Column("actor", _Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("message", _Text, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("number", _Number, primary_key=True),  # order of opening
    Column("id", _Text, nullable=False, unique=True),
    Column("host", _Text, nullable=False),
    Column("boot_id", _Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("start_time", Double, nullable=False),
    Column("workflow", _Text, nullable=False),
    Column("expires", Double, nullable=False),
    Column("ended", Double, nullable=False),
    Column("slots", Integer, nullable=False, server_default="0"),  # evaluations at a time
)

requests = Table(  # left in the site's inbox, and carried out
    "requests",
    metadata,
    Column("id", _Text, primary_key=True),
    Column("time", Double, nullable=False),
)
