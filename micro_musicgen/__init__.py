"""Music models small enough to train from scratch at home, on your own sounds.

`from micro_musicgen import MicroMusicGen` is the way in from Python. The name is looked up when it is asked for, so
that `import micro_musicgen` costs neither torch nor audiocraft.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micro_musicgen.engine.engine import MicroMusicGen

__version__ = "0.1.0"
__all__ = ["MicroMusicGen", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "MicroMusicGen":
        from micro_musicgen.engine.engine import MicroMusicGen

        return MicroMusicGen
    raise AttributeError(f"module 'micro_musicgen' has no attribute {name!r}")
