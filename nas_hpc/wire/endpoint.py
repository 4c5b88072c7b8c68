"""The endpoint file: where a launcher listens, and the keys that open it. Mode 0600, replaced atomically."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nas_hpc.errors import LauncherGone, ProtocolError
from nas_hpc.files import replace_file
from nas_hpc.wire.codec import PROTOCOL

ENDPOINT_VARIABLE = "NAS_HPC_ENDPOINT"
"""Where the endpoint file is, for every process that a launcher starts."""


def endpoint_file(run: Path, key: str = "") -> Path:
    """The endpoint file in a site's directory ``run``: of the only launcher, or of the one with ``key``."""
    return run / (f"endpoint-{key}.json" if key else "endpoint.json")


def endpoint_files(run: Path) -> list[Path]:
    """All endpoint files of a site, by name; some may be left from launchers that were killed."""
    return sorted(run.glob("endpoint*.json"))


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a launcher listens, and the keys that open it."""

    addresses: tuple[str, ...]
    """ZeroMQ addresses, to be tried in order."""
    server_public: str
    client_public: str
    client_secret: str
    """CURVE keys in Z85."""
    epoch: str
    host: str
    pid: int
    protocol: int = PROTOCOL


def write_endpoint(path: Path, endpoint: Endpoint) -> None:
    """Replace the endpoint file atomically, mode 0600."""
    replace_file(path, json.dumps({name: getattr(endpoint, name) for name in endpoint.__slots__}))


def read_endpoint(path: Path) -> Endpoint:
    """The endpoint of ``path``. Raises LauncherGone if there is none, ProtocolError for another version."""
    try:
        body = json.loads(path.read_text())
        endpoint = Endpoint(**{**body, "addresses": tuple(body["addresses"])})
    except FileNotFoundError:
        raise LauncherGone(f"no launcher is running: {path} does not exist") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ProtocolError(f"{path} is no endpoint file: {error}") from error
    if endpoint.protocol != PROTOCOL:
        raise ProtocolError(
            f"the launcher at {path} speaks protocol {endpoint.protocol}; this program speaks {PROTOCOL}"
        )
    return endpoint
