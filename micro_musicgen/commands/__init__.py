"""Verbs of `micro-musicgen` that fill a file of their own; `cli` registers them."""
