"""The one tree of errors.

Every message is one line for the user: what was wrong, with the value, and what would be right.
``exit_code`` is what a command returns: 1 when the work failed, 2 when the call was wrong.
``transient`` says whether the same call may succeed later.
"""

from __future__ import annotations

INTERRUPTED = 130
"""Exit code of a command that was ended by Ctrl-C, as shells have it."""


class NasHpcError(Exception):
    """Base of all errors that are meant for the user's eyes."""

    exit_code = 1
    transient = False

    @property
    def message(self) -> str:
        """The line that the user sees."""
        return str(self)


class WrongCall(NasHpcError):
    """A value, flag, path or object given by the user is not usable; nothing was changed."""

    exit_code = 2


class ConfigError(WrongCall):
    """A setting (file, environment or flag) is missing or has a wrong value."""


class SiteError(WrongCall):
    """A site does not exist, is no site, is of another version, or cannot be written."""


class WorkFailed(NasHpcError):
    """The work was started as asked and failed."""


class BatchRefused(WorkFailed):
    """The batch system said no; the message holds its own words and what was sent."""


class BatchSilent(NasHpcError):
    """The batch system was asked and gave no answer that makes sense: nothing is known, nothing changed."""

    transient = True


class StoreError(NasHpcError):
    """The job database refused or lost a request."""


class SchemaMismatch(StoreError):
    """The database was made by another version."""

    exit_code = 2


class LeaseLost(StoreError):
    """Another launcher has taken over: this one must end its processes and write nothing more."""


class PlacementError(NasHpcError):
    """A job asks for more than the allocation has."""


class InvalidResult(NasHpcError):
    """A run function or program returned something that is no result."""


class ProtocolError(NasHpcError):
    """A peer sent a message of another version or one that makes no sense."""


class LauncherGone(NasHpcError):
    """The launcher cannot be reached (any more)."""

    transient = True


class Superseded(NasHpcError):
    """This search process is not the current attempt of its job; it has to end."""
