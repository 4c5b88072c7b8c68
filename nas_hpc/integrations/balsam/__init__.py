"""Balsam classic as an engine: searches and their evaluations are jobs of a Balsam database.

Nothing of Balsam is imported here: a program of ours under Balsam's own interpreter, the bridge, speaks with
its database (``bridge``), and this side speaks with the bridge by lines of JSON (``process``).
"""
