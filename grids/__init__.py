"""Dora grids: one module an experiment, each holding an `explorer`."""
