"""What an allocation has, and which job occupies what: discovery and placement."""

from nas_hpc.resources.discover import Found, as_reported, discover, local_nodes
from nas_hpc.resources.hostlist import compress
from nas_hpc.resources.pool import Pool, Soonest
from nas_hpc.resources.request import Placement, Request

__all__ = [
    "Found",
    "Placement",
    "Pool",
    "Request",
    "Soonest",
    "as_reported",
    "compress",
    "discover",
    "local_nodes",
]
