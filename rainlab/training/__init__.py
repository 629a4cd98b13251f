"""How the networks get their weights: one loop, the losses, and the stages as runs that build on each other.
Start reading at `stages`.
Imports `data`, `method` and the base.
"""
