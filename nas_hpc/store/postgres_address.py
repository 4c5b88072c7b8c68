"""Where a PostgreSQL database is: its URL, and the file that holds the password."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from nas_hpc.errors import SiteError, WrongCall

EXAMPLES = "postgresql://USER@HOST:PORT/NAME or postgresql:///NAME?host=/SOCKET/DIRECTORY"

CONNECTION = {
    "application_name": "nas-hpc",
    "client_encoding": "UTF8",
    "connect_timeout": "10",
    "keepalives": "1",  # this side's: the server's are among the settings
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
_FIXED = frozenset({"application_name", "client_encoding"})


@dataclass(frozen=True, slots=True)
class Address:
    """A database of a server. As text it is what messages call it, without any secret."""

    given: Mapping[str, str]
    """libpq's parameters of the URL."""
    password_file: Path | None = None

    def __str__(self) -> str:
        host = self.given.get("host") or self.given.get("hostaddr") or ""
        port = self.given.get("port", "")
        user = f"{self.given['user']}@" if "user" in self.given else ""
        if host.startswith("/") or not host:
            return f"postgresql://{user}/{self.given['dbname']}" + (f"?host={host}" if host else "")
        return f"postgresql://{user}{host}{':' if port else ''}{port}/{self.given['dbname']}"

    def parameters(self, settings: Mapping[str, str]) -> dict[str, Any]:
        """What to connect with; ``settings`` are the session's. Reads the password."""
        merged: dict[str, Any] = {**CONNECTION, **self.given}
        merged |= {name: CONNECTION[name] for name in _FIXED}
        flags = [f"-c {name}={value}" for name, value in settings.items()]
        merged["options"] = " ".join(filter(None, [self.given.get("options", ""), *flags]))
        if self.password_file is not None:
            merged["password"] = read_password(self.password_file)
        return merged


def read_address(url: str, password_file: Path | None = None) -> Address:
    """The address that ``url`` means. Raises WrongCall for one that is wrong or holds a password."""
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.ProgrammingError as error:
        said = " ".join(str(error).replace(url, _without_password(url)).split())
        raise WrongCall(
            f"{_without_password(url)!r} is no URL of a database: {said}; write {EXAMPLES}"
        ) from None
    if "password" in given:
        raise WrongCall(
            f"the URL {_without_password(url)} holds a password, which others could see; put it into a file "
            "with mode 0600 and name that"
        )
    if not given.get("dbname"):
        raise WrongCall(f"the URL {url} names no database; write {EXAMPLES}")
    for port in filter(None, given.get("port", "").split(",")):
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise WrongCall(f"the URL {url} has the port {port!r}; it has to be a number from 1 to 65535")
    return Address(given, password_file)


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    head, at, tail = rest.rpartition("@")
    user, colon, _ = head.partition(":")
    shown = f"{scheme}{separator}{user}{':...' if colon else ''}{at}{tail}"
    before, mark, _ = shown.partition("password=")
    return f"{before}{mark}..." if mark else shown


def read_password(path: Path) -> str:
    """The first line of ``path``. Raises SiteError if it is missing, empty, or others can read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise SiteError(
                    f"the password file {path} can be read by others (mode {mode:04o}); "
                    f"first: chmod 600 {path}"
                )
            text = file.read(4096)
    except OSError as error:
        raise SiteError(f"the password file {path} cannot be read: {error.strerror or error}") from None
    try:
        password = text.decode().partition("\n")[0].rstrip("\r")
    except UnicodeDecodeError:
        raise SiteError(
            f"the password file {path} holds no text; write the password as its first line"
        ) from None
    if not password:
        raise SiteError(f"the password file {path} is empty; write the password as its first line")
    return password
