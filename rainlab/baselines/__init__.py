"""The systems that RAIN builds on or competes with, on our networks and with the interface of Stream: they differ in
method alone.
Imports `training`, `data`, `method` and the base.
"""
