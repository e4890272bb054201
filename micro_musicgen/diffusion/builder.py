"""From plain config data to a model that can be trained or filled with weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from micro_musicgen.diffusion.denoiser import DenoiserShape, denoisers
from micro_musicgen.diffusion.model import REGRESSION, LatentDiffusion
from micro_musicgen.diffusion.objective import loss_weight, objectives
from micro_musicgen.diffusion.schedule import make_schedule
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG_KEYS = ("diffusion", "denoiser", "decoder", "sampling")
"""The keys of the Hydra config that decide what a model is and how it is played. A release keeps these."""


def diffusion_config(cfg: DictConfig) -> dict[str, Any]:
    """Gives the part of a run's config that `build_diffusion` reads, as plain resolved data."""
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(CONFIG_KEYS)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def build_diffusion(config: Mapping[str, Any]) -> LatentDiffusion:
    """Gives an untrained model; its normalisers are still to be fitted.

    config: sections `diffusion` (num_timesteps, schedule, objective, loss_weight, residual, channels,
    condition_channels, text_channels) and `denoiser` (name, and a section of that name).

    Raises:
        MicroMusicGenError: a name that nothing has, or values that don't go together.
    """
    section, network = config["diffusion"], config["denoiser"]
    schedule = make_schedule(section["schedule"], int(section["num_timesteps"]))
    name = section["objective"]
    objective = None if name == REGRESSION else objectives.get(name)
    shape = DenoiserShape(
        channels=int(section["channels"]),
        condition_channels=int(section["condition_channels"]),
        text_channels=int(section.get("text_channels") or 0),
        schedule=schedule,
    )
    residual = bool(section.get("residual"))
    if residual and shape.condition_channels < shape.channels:
        raise MicroMusicGenError(
            f"diffusion.residual=true needs a condition of at least {shape.channels} channels to start from, not "
            f"{shape.condition_channels}; set it to false"
        )
    make = denoisers.get(network["name"])
    if not isinstance(network.get(network["name"]), Mapping):
        raise MicroMusicGenError(f"denoiser.name={network['name']} needs a section denoiser.{network['name']}")
    return LatentDiffusion(
        make(network[network["name"]], shape),
        channels=shape.channels,
        condition_channels=shape.condition_channels,
        text_channels=shape.text_channels,
        schedule=schedule,
        objective=objective,
        loss_weight=loss_weight(section["loss_weight"], "v" if objective is None else name),
        residual=residual,
    )
