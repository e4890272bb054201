"""From a diffusion decoder's files to a model that plays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from micro_musicgen import weights
from micro_musicgen.diffusion.builder import build_diffusion
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    from micro_musicgen.diffusion.model import LatentDiffusion
    from micro_musicgen.release.decoder import DecoderParts

DEPTHS = ("depth", "levels", "num_layers")
"""Config keys that say how often something is built. Each repetition has at least one tensor of its own."""
WIDTHS = ("dim", "channels", "heads", "factor", "patch")
"""Words in config keys that say how wide something is: at most as the largest side of a tensor."""
MAX_TIMESTEPS = 1_000_000


def build_decoder(found: DecoderParts, device: torch.device | str = "cpu") -> LatentDiffusion:
    """Gives the model made of `found`, in evaluation mode on `device`. torch's global random state stays as it is.

    Raises:
        MicroMusicGenError: weights and config don't belong together, or it listens to texts.
    """
    _check_sizes(found)
    if found.config["diffusion"].get("text_channels"):
        raise MicroMusicGenError(f"{found.source} listens to texts, which a decoder of codes has not; use another one")
    with torch.random.fork_rng(devices=[]):  # it is built with weights drawn at random, which are thrown away
        try:
            model = build_diffusion(found.config)
        except MicroMusicGenError as error:
            raise MicroMusicGenError(f"{found.source}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise MicroMusicGenError(
                f"{found.source} is not a diffusion decoder that can be built here "
                f"({type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}); export it again"
            ) from error
    weights.check_shapes(model, found.shapes, source=found.source)
    model.load_state_dict({name: found.state[name] for name in found.shapes})
    return model.to(device).eval().requires_grad_(False)


def _check_sizes(found: DecoderParts) -> None:
    """Refuses a network that is wider or deeper than its weights, before memory is taken for it."""
    widest = max((extent for shape in found.shapes.values() for extent in shape), default=0)
    numbers = list(_numbers(found.config["denoiser"]))
    limits = [(key, value, len(found.shapes)) for key, value in numbers if key in DEPTHS]
    limits += [(key, value, widest) for key, value in numbers if any(word in key for word in WIDTHS)]
    limits += [(key, value, MAX_TIMESTEPS) for key, value in _numbers(found.config["diffusion"])]
    for key, value, limit in limits:
        if value > limit:
            raise MicroMusicGenError(
                f"{found.source} does not hold the model that its config describes: {key} {value} is more than {limit}"
            )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield str(key), value
