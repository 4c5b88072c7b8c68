"""What PostgreSQL and its driver say, made one line for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
from sqlalchemy.exc import DBAPIError

from nas_hpc.errors import NasHpcError, SiteError, StoreError, WrongCall

if TYPE_CHECKING:
    from nas_hpc.store.postgres_address import Address

_PASSING = {
    "40001": "another transaction came first",
    "40P01": "two transactions waited for each other",
    "53100": "the server's disk is full",
    "53200": "the server has no memory left",
    "53300": "the server has no connection left",
    "55P03": "somebody else has held a lock for too long",
    "57014": "the server took too long",
    "57P01": "the server was told to end the connection",
    "57P02": "another process of the server crashed",
    "57P03": "the server is starting or stopping",
    "57P05": "the server ended an idle connection",
    "25P03": "this process was stopped in the middle of a transaction",
    "25P04": "a transaction took too long",
    "58030": "the server's disk failed",
}
"""SQLSTATEs of what may be over soon."""

_NOT_OURS = {"42P01", "42703", "3F000"}
"""A table, column or schema that is missing."""

_LOGIN = (
    (
        "password authentication failed",
        "the password is wrong, or the user is not known there; check the password file",
    ),
    ("no password supplied", "it wants a password; name the file that holds it"),
    ("authentication failed", "check the user's name"),
    ("no pg_hba.conf entry", "its administrator has to allow this user and host in pg_hba.conf"),
)
_MISSING = (
    ("role", "does not exist", "name a user that the server knows: postgresql://USER@..."),
    ("database", "does not exist", "make it with: createdb --encoding UTF8 --template template0 NAME"),
    ("permission denied for database", "", "its owner has to say: GRANT CONNECT ON DATABASE ... TO ..."),
)
_UNREACHABLE = (
    ("could not translate host name", "check the host's name"),
    ("Name or service not known", "check the host's name"),
    ("Connection refused", "is it running, and is this its port?"),
    ("No such file or directory", "is it running, and is this the directory of its socket?"),
    ("Permission denied", "its socket is another user's"),
)


def explain(error: BaseException, address: Address) -> NasHpcError:
    """One line; ``transient`` where the same call may succeed later."""
    cause: BaseException = error
    if isinstance(error, DBAPIError) and error.orig is not None:
        cause = error.orig
    said = " ".join(str(cause).split()) or type(cause).__name__
    state = getattr(cause, "sqlstate", None) or ""
    if state:
        return _by_state(cause, state, said, address)
    if isinstance(cause, psycopg.DataError):  # refused by the driver
        if "NUL" in said:
            return WrongCall(f"a text with a NUL character cannot be stored in {address}: leave it out")
        return WrongCall(f"a value cannot be stored in {address}: {said}")
    if isinstance(cause, psycopg.OperationalError):
        return _without_state(said, address)
    return StoreError(f"the job database {address} failed: {said}")


def _by_state(cause: BaseException, state: str, said: str, address: Address) -> NasHpcError:
    told: NasHpcError
    if isinstance(cause, psycopg.IntegrityError):
        return StoreError(f"the job database {address} refused a row: {said}")
    if state in _PASSING or state.startswith("08"):
        why = _PASSING.get(state, "the connection was lost")
        told = StoreError(f"the job database {address} could not answer, {why}: {said}")
        told.transient = True
        return told
    if state in _NOT_OURS:
        return SiteError(f"{address} is no job database of nas-hpc: {said}")
    if state == "42501":
        return SiteError(
            f"the job database {address} is not writable for this user: {said}; be its owner, or have him "
            "say: GRANT CREATE ON SCHEMA public TO USER"
        )
    if state == "25006":
        return SiteError(f"the job database {address} takes no changes: {said}; name its primary server")
    if state == "22P05":
        return WrongCall(f"a text with a NUL character cannot be stored in {address}: leave it out")
    if state.startswith("22"):
        return WrongCall(f"a value cannot be stored in {address}: {said}")
    if state.startswith("28"):
        return SiteError(
            f"the server of {address} does not let this user in: {said}; check the password file"
        )
    return StoreError(f"the job database {address} failed: {said}")


def _without_state(said: str, address: Address) -> NasHpcError:
    """libpq tells a failed connection by its text alone."""
    for part, advice in _LOGIN:
        if part in said:
            return SiteError(f"the server of {address} does not let this user in: {_last(said)}; {advice}")
    for first, second, advice in _MISSING:
        if first in said and second in said and "FATAL" in said:
            return SiteError(f"{address} cannot be opened: {_last(said)}; {advice}")
    told = StoreError(f"the job database {address} cannot be reached: {_last(said)}")
    for part, advice in _UNREACHABLE:
        if part in said:
            told = StoreError(f"the job database {address} cannot be reached: {_last(said)}; {advice}")
            break
    told.transient = True
    return told


def _last(said: str) -> str:
    """Without what the driver says before and after the reason."""
    reason = said.partition("failed: ")[2] or said
    return reason.partition(" Is the server running")[0].removeprefix("FATAL: ").strip()
