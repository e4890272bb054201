"""All conditioners of a model together: the module that stands where audiocraft's condition provider stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from micro_musicgen.conditioners.base import Conditioner, ConditionTensors, Progress, Surroundings, conditioners
from micro_musicgen.errors import MicroMusicGenError

Said = Mapping[str, Sequence[Any]]
"""Name -> what is said about each of B clips, None where nothing is. A name left out is nothing said about any."""

UPSTREAM = frozenset({"t5", "lut", "chroma_stem", "clap"})
"""audiocraft's own conditioners, which its own builder makes."""
FUSED_BY = ("prepend", "cross", "sum")


class ConditionProvider(nn.Module):
    """Conditioners by name, in the config's order. Its parameters are `condition_provider.conditioners.NAME.*`."""

    def __init__(self, made: Mapping[str, Conditioner]) -> None:
        super().__init__()
        self.conditioners = nn.ModuleDict(dict(made))

    def names(self, kind: str | None = None) -> tuple[str, ...]:
        """Gives the names of all conditions, or of those of one kind ("text", "audio", "bars")."""
        return tuple(name for name, each in self._each() if kind in (None, each.kind))

    def warm(self, said: Said, *, folder: Path | None = None, progress: Progress | None = None) -> None:
        """Does now, of what will be said, what `prepare` would have to wait for; see `Conditioner.warm`.

        The things under each name need not be about the same clips. progress: called for one name after the other.
        """
        for name, each in self._each():
            if name in said:
                each.warm(said[name], folder=folder, progress=progress)

    def prepare(self, said: Said) -> dict[str, Any]:
        """Gives what `forward` takes. Runs frozen encoders; to be called before anything that should not wait.

        Raises:
            MicroMusicGenError: a name that the model doesn't know, or as many things as there are clips were not said.
        """
        sizes = {name: len(things) for name, things in said.items()}
        unknown = sorted(set(said) - set(self.conditioners))
        if unknown:
            known = ", ".join(self.conditioners) or "nothing"
            raise MicroMusicGenError(f"this model does not listen to {unknown[0]!r}; it listens to {known}")
        if len(set(sizes.values())) != 1:  # nothing said at all included: of how many clips?
            raise MicroMusicGenError(f"conditions for different numbers of clips: {sizes}")
        size = next(iter(sizes.values()))
        return {name: each.prepare(said.get(name, [None] * size)) for name, each in self._each()}

    def forward(self, prepared: Mapping[str, Any]) -> ConditionTensors:
        """Gives every condition embedded: name -> (embeddings [B, S, D], mask bool [B, S])."""
        return {name: each(prepared[name]) for name, each in self._each()}

    def null(self, batch_size: int) -> ConditionTensors:
        """Gives what `forward` gives of clips about which nothing is said."""
        return {name: each.null(batch_size) for name, each in self._each()}

    def _each(self) -> list[tuple[str, Conditioner]]:
        return [(name, each) for name, each in self.conditioners.items() if isinstance(each, Conditioner)]


def is_ours(config: Mapping[str, Any]) -> bool:
    """Says whether the conditioners that an LM config names are this project's, audiocraft's being the alternative.

    Raises:
        MicroMusicGenError: it names some of each.
    """
    named = {name: str(each["model"]) for name, each in _named(config).items()}
    ours = {name for name, model in named.items() if model not in UPSTREAM}
    if ours and ours != set(named):
        others = ", ".join(f"{name} ({named[name]})" for name in sorted(set(named) - ours))
        raise MicroMusicGenError(f"{others}: audiocraft's conditioners can't be mixed with this project's; choose one")
    return bool(ours)


def build_provider(config: Mapping[str, Any], surroundings: Surroundings) -> ConditionProvider:
    """Gives the conditioners of an LM config (as `lm.builder.lm_config` gives it), untrained, on the CPU.

    Raises:
        MicroMusicGenError: an unknown conditioner, one that can't be built, or one that does not enter the network.
    """
    made: dict[str, Conditioner] = {}
    for name, each in _named(config).items():
        make = conditioners.get(str(each["model"]))
        made[name] = make(each.get(each["model"]) or {}, surroundings)
    _check_fused(config, made)
    return ConditionProvider(made)


def _check_fused(config: Mapping[str, Any], made: Mapping[str, Conditioner]) -> None:
    fuser = config.get("fuser") or {}
    fused = [str(name) for way in FUSED_BY for name in fuser.get(way) or ()]
    if sorted(fused) != sorted(made):
        raise MicroMusicGenError(
            f"fuser.prepend, .cross and .sum name {', '.join(sorted(fused)) or 'nothing'}; "
            f"expected each of the conditioners once: {', '.join(sorted(made))}"
        )
    for name in fuser.get("sum") or ():
        if made[name].num_positions != 1:
            raise MicroMusicGenError(
                f"fuser.sum names {name}, which has {made[name].num_positions} positions; prepend it or attend to it"
            )


def _named(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found = config.get("conditioners") or {}
    return {str(name): each for name, each in found.items() if isinstance(each, Mapping) and "model" in each}
