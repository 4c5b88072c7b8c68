"""Statistics of proxy tasks: cheap trainings that stand for full ones in a search.

Pure functions over arrays, and the reader of what trainings left in their directories. What they compute and
which numbers decide is that of the three proxy-task design tools of Vertex AI NAS; where those judge a dead
training as a good one, or lose what came last, these do not.
"""
