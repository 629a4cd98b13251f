"""The protocol: metrics with intervals, held-out evaluation, endless streams, timings, and the paper's tables.
Every number becomes a run.
Imports `training`, `data`, `method` and the base.
"""
