"""What an allocation has, and which job occupies what: discovery and placement."""

from nas_hpc.resources.discover import local_nodes
from nas_hpc.resources.pool import Placement, Pool, Request

__all__ = ["Placement", "Pool", "Request", "local_nodes"]
