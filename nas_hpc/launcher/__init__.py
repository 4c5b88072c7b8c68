"""Runs the jobs of a site inside an allocation: the event loop, its agents, and the endpoint for searches."""

from nas_hpc.launcher.options import LauncherOptions

__all__ = ["LauncherOptions", "run_launcher"]


def __getattr__(name: str) -> object:
    # The loop's imports are heavy, and commands need the options alone to check what was typed.
    if name == "run_launcher":
        from nas_hpc.launcher.start import run_launcher

        return run_launcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
