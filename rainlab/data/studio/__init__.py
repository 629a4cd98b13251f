"""Procedural clips with exact ground truth, offline: `body.render` makes them."""
