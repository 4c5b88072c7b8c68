"""Controllers that design a proxy task: a cheap training that stands for the full one in a search.

The application PROXY_TASKS is ``python -m nas_hpc.apps.proxy --directory DIR``; which tool it is says the
directory. ``rounds`` is what they share: rounds of trials of given models, their orders, their curves;
``tool`` keeps what was asked and how far it has come.
"""
