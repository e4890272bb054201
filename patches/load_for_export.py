"""Export reads a training state, which torch >= 2.6 refuses for the config in it."""

import functools
from typing import Any

from micro_musicgen.patching import Patch
from micro_musicgen.upstream.safe_load import harmless_only


def _safely(export: Any) -> Any:
    @functools.wraps(export)
    def exported(*args: Any, **kwargs: Any) -> Any:
        with harmless_only():
            return export(*args, **kwargs)

    return exported


def _apply(module: Any) -> None:
    for name in ("export_lm", "export_encodec", "export_pretrained_compression_model"):
        setattr(module, name, _safely(getattr(module, name)))


PATCH = Patch(
    name="load_for_export",
    target="audiocraft.utils.export",
    broken="export_lm and export_encodec raise UnpicklingError: torch refuses the config in the checkpoint",
    issue="AC PR #534",
    fingerprints=("7c9d9752a464d181",),
    gone_when="audiocraft stores its config as text",
    apply=_apply,
)
