"""What an allocation has, and which job occupies what: discovery and placement."""

from nas_hpc.resources.discover import Found, as_reported, discover, local_nodes
from nas_hpc.resources.pool import Placement, Pool, Request

__all__ = ["Found", "Placement", "Pool", "Request", "as_reported", "discover", "local_nodes"]
