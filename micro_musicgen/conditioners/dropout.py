"""Which conditions a crop loses while training, so that the model also learns to do without: what guidance needs."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from micro_musicgen.errors import MicroMusicGenError


@dataclass(frozen=True)
class ConditionDropout:
    """Shares of the crops that lose conditions; the cases exclude each other.

    everything: lose all of them. alone: name -> share that loses this one and keeps the others.
    """

    everything: float = 0.0
    alone: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shares = [self.everything, *self.alone.values()]
        if not all(0 <= share <= 1 for share in shares) or sum(shares) > 1:
            raise MicroMusicGenError(
                f"shares of crops without conditions are {shares}; each must lie in [0, 1], their sum too "
                "(classifier_free_guidance.training_dropout, attribute_dropout)"
            )

    @classmethod
    def parse(cls, config: Mapping[str, Any]) -> ConditionDropout:
        """Gives the shares that an LM config asks for.

        Raises:
            MicroMusicGenError: a share outside [0, 1], a sum above 1, or a name that the model does not listen to.
        """
        alone = {
            str(name): float(share)
            for group in (config.get("attribute_dropout") or {}).values()
            for name, share in (group or {}).items()
        }
        known = set(config.get("conditioners") or {})
        unknown = sorted(set(alone) - known)
        if unknown:
            raise MicroMusicGenError(
                f"attribute_dropout names {unknown[0]!r}; this model listens to {', '.join(sorted(known)) or 'nothing'}"
            )
        return cls(float(config["classifier_free_guidance"]["training_dropout"]), alone)

    def kept(self, name: str, *, seed: int, place: int) -> bool:
        """Says whether the crop at `place` of a run's endless series keeps condition `name`."""
        draw = random.Random(f"{seed}/{place}/conditions").random()
        if draw < self.everything:
            return False
        draw -= self.everything
        for other, share in self.alone.items():
            if draw < share:
                return name != other
            draw -= share
        return True
