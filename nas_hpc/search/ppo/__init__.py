"""Proximal policy optimization of sequences of decisions: pure, without MPI, files and clocks.

An agent draws episodes (``Ppo.sample``), has them evaluated, and makes an update of the rewards
(``Ppo.begin``): some gradients one after the other, each averaged over all agents and applied by all, so
that their copies stay the same bit by bit (``Ppo.digest``).
"""

from __future__ import annotations

from nas_hpc.search.ppo.episodes import Episodes
from nas_hpc.search.ppo.learner import Ppo
from nas_hpc.search.ppo.objective import Losses, Update
from nas_hpc.search.ppo.settings import NETWORKS, Settings

__all__ = ["NETWORKS", "Episodes", "Losses", "Ppo", "Settings", "Update"]
