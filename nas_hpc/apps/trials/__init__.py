"""Trials: trainings by a user's own program, each with the parameters that a search gives it.

The application TRIALS is ``python -m nas_hpc.apps.trials --directory DIR``. What other applications build on:
``runner`` (start trials, wait for them, end them) and ``records``
(what came of them).
"""
