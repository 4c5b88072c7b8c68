"""How attempts run: keepers that start them, their sessions and their end, warm interpreters, environments.

Stays free of imports: a keeper loads this package in interpreters that have nothing of ours installed.
"""
