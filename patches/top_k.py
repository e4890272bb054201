"""Small codecs have fewer codes than the default top_k of 250; drawing among all of them is what is meant."""

import functools
from typing import Any

from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    sample = module.sample_top_k

    @functools.wraps(sample)
    def sample_top_k(probs: Any, k: int) -> Any:
        return sample(probs, min(k, probs.shape[-1]))

    module.sample_top_k = sample_top_k


PATCH = Patch(
    name="top_k",
    target="audiocraft.utils.utils:sample_top_k",
    broken="generate raises RuntimeError (selected index k out of range) on a codec with fewer than 250 codes",
    issue="none known",
    fingerprints=("dc815df040176bb2",),
    gone_when="sample_top_k takes at most as many as there are",
    apply=_apply,
)
