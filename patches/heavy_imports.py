"""audiocraft imports text, tagging and metric libraries at its top, which most models never use."""

from functools import partial
from typing import Any

from micro_musicgen.patching import Patch
from micro_musicgen.upstream.stubs import Stub, serve

LATER = ("transformers",)
"""Installed or not, they take seconds to import, in every process that builds a model."""
EXTRAS = {"transformers": "text", "spacy": "text", "num2words": "text", "librosa": "clap", "torchmetrics": "clap"}


def _apply(module: Any) -> None:
    serve({name: partial(Stub, name, extra) for name, extra in EXTRAS.items()}, later=LATER)


PATCH = Patch(
    name="heavy_imports",
    target="audiocraft.modules.conditioners",
    broken="import of any model dies without transformers, spacy, num2words, librosa, torchmetrics; crawls with",
    issue="AC #599",
    gone_when="audiocraft imports them inside use",
    apply=_apply,
    before_import=True,
)
