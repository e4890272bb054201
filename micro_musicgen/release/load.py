"""From a reference to a model that plays: language model and codec, built, filled and fitting each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen import weights
from micro_musicgen.codec.parts import CodecParts
from micro_musicgen.codec.resolve import build_codec
from micro_musicgen.contracts import Codec, LMSpec
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import FRAME_RATE, build_condition_provider, build_lm, lm_spec
from micro_musicgen.lm.fit import differences
from micro_musicgen.release.source import ModelParts, read_parts

if TYPE_CHECKING:
    import torch
    from torch import nn

BUILT_EMPTY = ("text", "audio_prompt", "bars")
"""Conditioners that can be built on torch's meta device: all of their tensors are weights."""


@dataclass(frozen=True, kw_only=True)
class LoadedRelease:
    """A model ready to play. Invariant: the codec's codes are the ones that the LM models.

    lm: audiocraft's LMModel, or what else `lm_model` of its config names, fp32, in evaluation mode. window_s: seconds
    that it was trained on at once.
    """

    name: str
    lm: nn.Module
    codec: Codec
    spec: LMSpec
    window_s: float
    source: str


def load_release(reference: str | Path, device: torch.device | str = "cpu") -> LoadedRelease:
    """Gives the model that `reference` names, on `device`.

    reference: a release folder (ours or audiocraft's), a Hub id, or a run: signature, folder, data set name.

    Raises:
        MissingFileError: nothing of that name exists, or a file of it is missing.
        MissingExtraError: it needs a library that is not installed.
        MicroMusicGenError: a file is damaged or was changed, or codec and LM don't fit.
    """
    found = read_parts(reference)
    codec_parts = found.codec()
    codec = build_codec(codec_parts, device)
    lm = build_model(found, frame_rate=codec.frame_rate)
    spec = lm_spec(found.lm)
    check_fit(spec, codec, found, codec_parts)
    return LoadedRelease(
        name=found.name, lm=lm.to(device), codec=codec, spec=spec, window_s=found.window_s, source=found.source
    )


def build_model(found: ModelParts, *, frame_rate: float = FRAME_RATE) -> nn.Module:
    """Gives the language model made of `found`, on the CPU. frame_rate: of its codec.

    Raises:
        MicroMusicGenError: weights and config don't belong together.
    """
    weights.check_depths(found.lm, found.shapes, source=found.source)

    def build(device: str) -> nn.Module:
        made: nn.Module = build_lm(found.lm, window_s=found.window_s, device=device, frame_rate=frame_rate)
        return made

    return _filled(build, found.lm, found.read_lm, found.shapes, found.source)


def build_conditioners(found: ModelParts, *, frame_rate: float = FRAME_RATE) -> Any:
    """Gives the condition provider (this project's, or audiocraft's) with the weights in `found`, on the CPU.

    Raises:
        MicroMusicGenError: weights and config don't belong together, or a conditioner can't be built.
    """
    prefix = "condition_provider."
    shapes = {name.removeprefix(prefix): shape for name, shape in found.shapes.items() if name.startswith(prefix)}

    def build(device: str) -> nn.Module:
        made: nn.Module = build_condition_provider(
            found.lm, window_s=found.window_s, device=device, frame_rate=frame_rate
        )
        return made

    def read() -> dict[str, torch.Tensor]:
        state = found.read_lm()
        return {name: state[prefix + name] for name in shapes}

    return _filled(build, found.lm, read, shapes, found.source)


def _filled(
    build: Callable[[str], nn.Module],
    lm: Mapping[str, Any],
    read: Callable[[], Mapping[str, torch.Tensor]],
    shapes: weights.Shapes,
    source: str,
) -> nn.Module:
    """Builds with real memory where conditioners load models of their own while they are built, which meta would undo;
    this project's don't.
    """
    conditioners = [
        each["model"] for each in (lm["conditioners"] or {}).values() if isinstance(each, Mapping) and "model" in each
    ]
    if all(model in BUILT_EMPTY for model in conditioners):
        return weights.fill_module(build, read, shapes, source=source)
    model = build("cpu")
    weights.check_shapes(model, shapes, source=source)
    model.load_state_dict(read())
    return model.eval()


def check_fit(spec: LMSpec, codec: Codec, found: ModelParts, codec_parts: CodecParts) -> None:
    """Refuses a codec whose codes are not the ones that the LM models.

    Raises:
        MicroMusicGenError: naming both and every difference.
    """
    faults = [f"{d.codec} {d.what} against {d.lm}" for d in differences(codec, spec, found.sample_rate)]
    if faults:
        raise MicroMusicGenError(
            f"codec {codec_parts.pretrained or codec_parts.source} does not fit the language model {found.source}: "
            f"{', '.join(faults)}; name the codec that the model was trained on"
        )
