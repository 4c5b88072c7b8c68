"""Registered applications."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, insert, select, update

from nas_hpc.errors import WrongCall
from nas_hpc.records import App
from nas_hpc.states import FINAL
from nas_hpc.store.fast_json import read_json
from nas_hpc.store.rows import dump_json
from nas_hpc.store.schema import apps, jobs
from nas_hpc.store.session import Session

_IN_BODY = ("environment_script", "preprocess", "postprocess")
"""Fields that stand in the JSON text ``body``, if they are not empty."""


def read_apps(session: Session) -> list[App]:
    """See ``Store.apps``."""
    return [_app_of(row) for row in session.rows(select(apps).order_by(apps.c.name))]


def _app_of(row: Any) -> App:
    return App(row.name, row.executable, row.description, row.restartable, **read_json(row.body))


def put_app(session: Session, app: App, replace: bool) -> None:
    """See ``Store.put_app``. The same application again is no error."""
    values = {
        "name": app.name, "executable": app.executable, "description": app.description,
        "restartable": app.restartable,
        "body": dump_json({name: v for name in _IN_BODY if (v := getattr(app, name))}, "an application"),
    }  # fmt: skip
    rows = session.rows(select(apps).where(apps.c.name == app.name).with_for_update())
    if not rows:
        session.change(insert(apps).values(values))
    elif _app_of(rows[0]) != app:
        if not replace:
            raise WrongCall(
                f"the application {app.name!r} exists already and runs {rows[0].executable!r}; "
                "choose another name"
            )
        session.change(update(apps).where(apps.c.name == app.name).values(values))


def remove_app(session: Session, name: str) -> None:
    """See ``Store.remove_app``."""
    if not session.rows(select(apps.c.name).where(apps.c.name == name).with_for_update()):
        known = ", ".join(app.name for app in read_apps(session)) or "none"
        raise WrongCall(f"there is no application {name!r}; known: {known}")
    final = sorted(state.value for state in FINAL)
    users = session.rows(
        select(jobs.c.name, jobs.c.id, jobs.c.state)
        .where(jobs.c.application == name, jobs.c.state.not_in(final))
        .order_by(jobs.c.number)
        .limit(1)
    )
    if users:
        job = users[0]
        raise WrongCall(
            f"job {job.name!r} ({job.id[:8]}), which is {job.state}, uses the application {name!r}; "
            "end it first"
        )
    session.change(delete(apps).where(apps.c.name == name))
