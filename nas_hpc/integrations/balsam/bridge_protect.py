"""Closing a Balsam database to strangers: ``balsam init`` lets in whoever reaches its port, without password,
as a superuser, who can have the server run programs.

Python 3.8 or later, the standard library and psycopg2: it runs under Balsam's interpreter.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat

from nas_hpc.integrations.balsam.bridge_database import Database, Failed, close
from nas_hpc.processes import results

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RULE = re.compile(r"^(\s*(local|host\w*)\s.*\s)trust(\s*(#.*)?)$", re.MULTILINE)


def protect(database: Database, cursor: Any) -> dict[str, Any]:
    """Give this user a password, which Balsam reads in server-info, and have the server ask for it.

    Who comes by the socket of this host has to be the user that he says he is. Raises Failed where others use
    the database, too: Balsam has one password for all. A change that shuts this user out is taken back.
    """
    from psycopg2.extensions import encrypt_password

    user = database.user
    cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    path = os.path.join(database.path, "server-info")
    if not cursor.fetchone()[0] or os.stat(path).st_uid != os.geteuid():
        raise Failed("permission", f"{database.path} is not yours: {database.owner} can protect it")
    cursor.execute("SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname <> current_user")
    others = [name for (name,) in cursor.fetchall()]
    if others:
        raise Failed(
            "refused",
            f"{', '.join(others)} may use {database.path}, too, and Balsam keeps one password alone: "
            f"balsam server --drop-user {others[0]}, or put rules of your own into its pg_hba.conf",
        )
    cursor.execute("SHOW hba_file")
    (rules,) = cursor.fetchone()
    with open(rules, encoding="utf-8") as file:
        before = file.read()
    after = _RULE.sub(
        lambda rule: rule[1] + ("peer" if rule[2] == "local" else "scram-sha-256") + rule[3], before
    )
    connection = cursor.connection
    password = database.info.get("password") or secrets.token_urlsafe(32)
    # The server writes statements into its log: it gets what is derived from the password alone.
    derived = encrypt_password(password, user, connection, "scram-sha-256")
    cursor.execute('ALTER ROLE "{}" PASSWORD %s'.format(user.replace('"', '""')), (derived,))
    connection.commit()
    _write(path, json.dumps({**database.info, "password": password}), 0o600)
    _write(rules, after)
    cursor.execute("SELECT pg_reload_conf()")
    connection.commit()
    try:
        close(database.connect())
    except Failed as failure:
        _write(rules, before)
        cursor.execute("SELECT pg_reload_conf()")
        connection.commit()
        raise Failed("refused", f"nothing was changed: with a password {failure}") from None
    return {"changed": after != before, "rules": rules}


def _write(path: str, content: str, mode: int | None = None) -> None:
    """In the place of a file, with its owner, and its mode unless another is given."""
    there = os.stat(path)
    directory, name = os.path.split(path)
    umask = os.umask(0o077)
    try:
        results.replace_file(directory, name, content.encode(), True)
    finally:
        os.umask(umask)
    os.chmod(path, stat.S_IMODE(there.st_mode) if mode is None else mode)
    if there.st_uid != os.geteuid():
        os.chown(path, there.st_uid, there.st_gid)
