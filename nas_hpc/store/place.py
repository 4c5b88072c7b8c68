"""Where the job database of a site is: what stands below ``[database]`` in site.toml.

Without that table it is SQLite, in the site. ``url`` names a PostgreSQL server that exists, never with a
password; ``owned`` says that the site made its server itself: where that listens stands in run/postgres.json.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from nas_hpc.errors import ConfigError, SiteError, WrongCall
from nas_hpc.files import replace_file
from nas_hpc.site import Site, read_site_file

RIGHT_URL = "postgresql://USER@HOST:5432/DATABASE"
PASSWORD_FILE = "database.password"
"""In the site: what was in the URL, or made for the site's own server."""
OWN_USER = OWN_DATABASE = "nas_hpc"
"""Role and database of a site's own server."""

_SECRET = ("password", "sslpassword")
_KNOWN: Mapping[str, type] = {
    "url": str,
    "password_file": str,
    "owned": bool,
    "interface": str,
    "server_user": str,
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a site's jobs are."""

    path: Path
    """The SQLite file, for a site that has one."""
    url: str = ""
    """Of a PostgreSQL server that is not the site's own."""
    password_file: Path | None = None
    owned: bool = False
    """The site has a PostgreSQL server of its own."""
    interface: str = ""
    """On which its own server listens, besides its socket."""
    server_user: str = ""
    """Who runs it, if not the site's owner (root)."""

    @property
    def kind(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return "postgresql" if self.owned or self.url else "sqlite"

    def table(self, site: Site) -> dict[str, str | bool]:
        """The table ``[database]`` that says this; empty for SQLite."""
        if self.kind == "sqlite":
            return {}
        table: dict[str, str | bool] = {"owned": True} if self.owned else {"url": self.url}
        if self.password_file is not None:
            inside = self.password_file.is_relative_to(site.path)
            table["password_file"] = str(
                self.password_file.relative_to(site.path) if inside else self.password_file
            )
        table |= {name: value for name in ("interface", "server_user") if (value := getattr(self, name))}
        return table


def place_of(site: Site) -> Place:
    """Where the jobs of ``site`` are. Raises SiteError, ConfigError for a site.toml that does not say it."""
    table = read_site_file(site).get("database")
    if table is None:
        return Place(site.database)
    values = _checked(table, f"{site.file}: [database]")
    secret = values.get("password_file", "")
    return Place(
        site.database,
        url=values.get("url", ""),
        password_file=site.path / Path(secret).expanduser() if secret else None,
        owned=values.get("owned", False),
        interface=values.get("interface", ""),
        server_user=values.get("server_user", ""),
    )


def _checked(table: Any, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is {table!r}; it has to be a table")
    for name, value in table.items():
        if name not in _KNOWN:
            raise ConfigError(f"{where} has the unknown key {name!r}; known are {', '.join(_KNOWN)}")
        if type(value) is not _KNOWN[name]:
            raise ConfigError(f"{where}: {name} is {value!r}; it has to be of type {_KNOWN[name].__name__}")
    if bool(table.get("url")) == bool(table.get("owned")):
        raise ConfigError(
            f'{where} needs either  url = "{RIGHT_URL}"  or  owned = true  (a server of the site\'s own)'
        )
    if table.get("url"):
        url, password = split_url(table["url"], f"{where}: url")
        if password:
            raise ConfigError(
                f"{where}: the url {url} holds a password; put it into a file of mode 0600 and name that as "
                "password_file"
            )
    return table


def split_url(text: str, named: str) -> tuple[str, str]:
    """The URL of a PostgreSQL database without its password, and that password, or "".

    Raises WrongCall for one that is none; ``named`` is how the user gave it, and no message tells the
    password.
    """
    shown = hidden(text)
    if re.search(r"[\s\x00-\x1f]", text):
        raise WrongCall(f"{named} {shown!r} has blanks in it; right is {RIGHT_URL}")
    parts = urlsplit(text)
    if parts.scheme not in ("postgresql", "postgres") or not text.startswith(f"{parts.scheme}://"):
        raise WrongCall(f"{named} {shown!r} is no URL of a PostgreSQL database; right is {RIGHT_URL}")
    try:
        port = parts.port
    except ValueError:
        raise WrongCall(f"{named} {shown!r}: the port has to be a number from 1 to 65535") from None
    if port == 0:
        raise WrongCall(f"{named} {shown!r}: the port has to be a number from 1 to 65535")
    if not parts.path.strip("/"):
        raise WrongCall(f"{named} {shown!r} names no database; right is {RIGHT_URL}")
    if parts.fragment:
        raise WrongCall(f"{named} {shown!r}: write # as %23 in user, password and database")
    options = parse_qsl(parts.query, keep_blank_values=True)
    asked = dict(options)
    if not parts.hostname and not asked.get("host"):
        raise WrongCall(
            f"{named} {shown!r} names no host; right is {RIGHT_URL}, or "
            "postgresql://USER@/DATABASE?host=/SOCKET/DIRECTORY"
        )
    if asked.get("sslpassword"):
        raise WrongCall(f"{named} {shown!r}: sslpassword is not supported; use a key without a password")
    user, separator, rest = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    left = [(key, value) for key, value in options if key not in _SECRET]
    query = f"?{urlencode(left, quote_via=quote, safe='/')}" if left else ""
    url = f"postgresql://{name}{separator}{rest}{parts.path}{query}"
    return url, unquote(password) or asked.get("password", "")


def hidden(text: str) -> str:
    """``text``, a URL perhaps, without what may be a password in it."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    rest = re.sub(r"^([^:@]*):.*@", r"\1:***@", rest, flags=re.DOTALL)
    return scheme + separator + re.sub(r"(password=)[^&\s]*", r"\1***", rest)


def write_secret(path: Path, secret: str) -> None:
    """Write a password into a new file of mode 0600. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(descriptor)


def check_secret(path: Path, named: str) -> None:
    """Raise WrongCall unless ``path`` is a file with a password that only its owner can read."""
    try:
        mode = path.stat().st_mode
        content = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise WrongCall(f"{named} {path} cannot be read: {why}; it has to hold the password") from None
    if mode & 0o077:
        raise WrongCall(
            f"{named} {path} is open to others (mode {mode & 0o777:04o}), who may have read the password: "
            f"chmod 600 {path}"
        )
    if not content.strip():
        raise WrongCall(f"{named} {path} is empty; it has to hold the password")


def write_place(site: Site, place: Place) -> None:
    """Replace what site.toml says of the database, at one stroke; the rest of it stays as it is."""
    lines = site.file.read_text().splitlines(keepends=True)
    kept, inside = [], False
    for line in lines:
        if re.match(r"\s*\[", line):
            inside = re.match(r"\s*\[\s*database\s*\]", line) is not None
        if not inside:
            kept.append(line)
    body = "".join(kept).rstrip("\n") + "\n"
    text = body + toml_table(place.table(site))
    try:
        replace_file(site.file, text)
    except OSError as error:
        raise SiteError(f"{site.file} cannot be written: {error.strerror or error}") from error


def toml_table(table: Mapping[str, str | bool]) -> str:
    """``[database]`` with these values, as text of a TOML file; nothing for an empty one."""
    if not table:
        return ""
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in table.items()]
    return "\n[database]\n# Where the jobs are; `nas-hpc db` is about it.\n" + "".join(lines)
