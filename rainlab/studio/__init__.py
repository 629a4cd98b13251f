"""Procedural clips with exact ground truth."""
