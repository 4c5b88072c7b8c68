"""Hyperparameter search problems: in each module a ``Problem`` and its ``run``."""
