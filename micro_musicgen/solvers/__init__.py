"""Training: one solver a kind of model, all on the same base."""

from micro_musicgen.solvers.registry import solvers

__all__ = ["solvers"]
