"""Doors to files: NIfTI volumes, dataset layouts and the case store."""
