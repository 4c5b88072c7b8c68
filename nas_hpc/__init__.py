"""Hyperparameter and neural-architecture searches on batch supercomputers.

The package's rooms are imported by name (``nas_hpc.evaluator``, ``nas_hpc.problem``, ...); this module
stays free of imports so that every command starts fast.
"""

__version__ = "0.1.0"
