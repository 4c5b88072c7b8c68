"""A site for each test."""

from __future__ import annotations

from tests.launcher.conftest import bench

__all__ = ["bench"]
