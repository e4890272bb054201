"""The only door to audiocraft. Importing this package puts the patches on: the one import with an effect.

It is cheap (neither torch nor audiocraft is loaded): a patch takes effect when the module that it mends is loaded,
whoever loads it. `pytest -p micro_musicgen.upstream` does the same for a test suite.
"""

from micro_musicgen.upstream.load import audiocraft_module, patcher

__all__ = ["audiocraft_module", "patcher"]

patcher()
