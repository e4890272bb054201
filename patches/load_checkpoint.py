"""torch >= 2.6 reads plain values only; audiocraft's training state holds an OmegaConf config too."""

import functools
from typing import Any

from micro_musicgen.patching import Patch
from micro_musicgen.upstream.safe_load import harmless_only


def _apply(module: Any) -> None:
    load = module.load_checkpoint

    @functools.wraps(load)
    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        with harmless_only():
            return load(*args, **kwargs)

    module.load_checkpoint = load_checkpoint


PATCH = Patch(
    name="load_checkpoint",
    target="audiocraft.utils.checkpoint:load_checkpoint",
    broken="no run resumes, and no LM trains on a codec of one's own: torch refuses the config in the checkpoint",
    issue="AC PR #534",
    fingerprints=("2dd1d09778d0ee21",),
    gone_when="audiocraft stores its config as text",
    apply=_apply,
)
