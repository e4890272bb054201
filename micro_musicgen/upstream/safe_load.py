"""Reading audiocraft's checkpoints without unpickling whatever they name.

torch >= 2.6 reads tensors and plain values only, and audiocraft's training state also holds its OmegaConf config. The
types below are what such a config is made of: they hold values and run nothing when they are restored.
"""

from __future__ import annotations

import contextlib
import pickle
import typing
from collections.abc import Callable, Iterator
from typing import Any

from micro_musicgen.errors import MicroMusicGenError


def _plain_dict(factory: Any = None) -> dict[Any, Any]:
    """Stands for `defaultdict`, which torch creates but will not fill."""
    return {}


def harmless_types() -> list[Callable[..., Any] | tuple[Any, str]]:
    """Gives what audiocraft's checkpoints hold beside tensors and plain values."""
    from omegaconf import DictConfig, ListConfig, nodes
    from omegaconf.base import ContainerMetadata, Metadata

    # typing.Any has no __qualname__ on Python 3.10, hence its name beside it.
    return [
        (typing.Any, "typing.Any"),
        (_plain_dict, "collections.defaultdict"),
        *(dict, list, int, float, bool, str),
        *(DictConfig, ListConfig, ContainerMetadata, Metadata),
        *(nodes.AnyNode, nodes.StringNode, nodes.IntegerNode, nodes.FloatNode, nodes.BooleanNode),
    ]


@contextlib.contextmanager
def harmless_only() -> Iterator[None]:
    """Within this block `torch.load` also takes the harmless types.

    Raises:
        MicroMusicGenError: a file holds anything else.
    """
    import torch

    with torch.serialization.safe_globals(harmless_types()):
        try:
            yield
        except pickle.UnpicklingError as error:
            reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
            raise MicroMusicGenError(
                f"the file holds more than weights and a config ({reason.strip()}); ask its maker to export it again"
            ) from error
