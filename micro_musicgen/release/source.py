"""A language model on its way between files: everything a release needs, from a run, a release or audiocraft's package.

Nothing is built here, and weights are read only when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen import checkpoints, hub_client, references, weights
from micro_musicgen.codec import parts as codec_parts
from micro_musicgen.codec.parts import CONFIG_FILE, CodecParts
from micro_musicgen.codec.resolve import read_codec
from micro_musicgen.contracts import BeatTime
from micro_musicgen.data.beat_grid import BeatGrid
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.lm.builder import lm_config
from micro_musicgen.release import decoder, encoders, provenance
from micro_musicgen.release.decoder import DecoderParts
from micro_musicgen.upstream.packages import CODEC_PACKAGE, LM_PACKAGE, plain_note, read_package

if TYPE_CHECKING:
    import torch

LM_WEIGHTS = "model.safetensors"
CARD_FILE = "README.md"
MICRO_FILES = (CONFIG_FILE, LM_WEIGHTS, codec_parts.WEIGHTS_FILE, decoder.WEIGHTS_FILE, CARD_FILE)
MICRO_PATTERNS = (*MICRO_FILES, *encoders.FILES)
"""All that a release folder of ours may hold."""
AUDIOCRAFT_FILES = (LM_PACKAGE, CODEC_PACKAGE, CARD_FILE)


@dataclass(frozen=True, kw_only=True)
class ModelParts:
    """A model as plain data. Invariant: `shapes` are those of what `read_lm` gives.

    source: where it was read from, for messages. lm: as `lm_config` gives it; text encoders by Hub id or path. codec:
    reads the codec. decoder: reads the diffusion decoder that belongs to it; gives None where there is none. beat_time:
    how it counts, window_s being nominal then; None in clock time.
    """

    source: str
    name: str
    lm: Mapping[str, Any]
    shapes: weights.Shapes
    read_lm: Callable[[], Mapping[str, torch.Tensor]]
    codec: Callable[[], CodecParts]
    sample_rate: int
    window_s: float
    provenance: Mapping[str, Any] = field(default_factory=dict)
    decoder: Callable[[], DecoderParts | None] = lambda: None
    beat_time: BeatTime | None = None


def read_parts(reference: str | Path) -> ModelParts:
    """Gives the model that `reference` names: a run, a release folder of either form, a checkpoint, a Hub id.

    Raises:
        MissingFileError: nothing of that name exists.
        MicroMusicGenError: it is damaged, or is no language model.
    """
    found = references.resolve(reference, solver="musicgen")
    if found.kind == "hub":
        assert found.hub_id is not None
        return _from_folder(fetch(found.hub_id), name=found.hub_id.rpartition("/")[2])
    path = found.local_path()
    if found.kind == "release":
        return _from_folder(path, name=path.name)
    if path.suffix == ".bin":
        return _from_folder(path.parent, name=path.parent.name)
    return _from_run(path / references.CHECKPOINT_NAME if found.kind == "run" else path)


def fetch(repo_id: str) -> Path:
    """Gives the local copy of a release on the Hub, of whichever form it has; ours wins when it has both.

    Raises:
        MissingFileError: there is no such repository, or it holds no release.
        MicroMusicGenError: the Hub can't be reached.
    """
    config = hub_client.download_file(repo_id, CONFIG_FILE)
    if config is not None and codec_parts.is_release(config.parent):
        return hub_client.download_folder(repo_id, MICRO_PATTERNS)
    folder = hub_client.download_folder(repo_id, AUDIOCRAFT_FILES)
    if not (folder / LM_PACKAGE).is_file():
        raise MissingFileError(
            f"{repo_id} on the Hub holds no release: neither a release's {CONFIG_FILE} nor {LM_PACKAGE}"
        )
    return folder


def _from_folder(folder: Path, *, name: str) -> ModelParts:
    if codec_parts.is_release(folder):
        return _from_release(folder)
    if (folder / LM_PACKAGE).is_file():
        return _from_package(folder, name=name)
    raise MissingFileError(f"{folder} holds no language model: neither a release's {CONFIG_FILE} nor {LM_PACKAGE}")


def _from_release(folder: Path) -> ModelParts:
    config = codec_parts.read_release_config(folder)
    path = codec_parts.checked_file(folder, LM_WEIGHTS, config)
    shapes = weights.read_shapes(path)
    return ModelParts(
        source=str(path),
        name=config.name,
        lm=encoders.with_widths(encoders.placed(config, folder), shapes),
        shapes=shapes,
        read_lm=lambda: weights.LazyWeights(path),
        codec=lambda: codec_parts.from_release(folder),
        sample_rate=config.sample_rate,
        window_s=config.window_s,
        provenance=config.provenance,
        decoder=lambda: decoder.from_release(folder),
        beat_time=config.beat_time,
    )


def _from_run(path: Path) -> ModelParts:
    from omegaconf import OmegaConf

    state = checkpoints.load(path, lazily=True)
    if state["solver"] != "musicgen":
        raise MicroMusicGenError(f"{path} is a run of solver={state['solver']}, no language model; name the run of one")
    config = OmegaConf.create(state["config"])
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    best: dict[str, torch.Tensor] = {name: tensor.clone() for name, tensor in state["best"]["model"].items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in best.items()}
    reference = codec_parts.codec_reference(state)
    facts: dict[str, Any] = {
        "run": provenance.run_facts(state, plain),  # type: ignore[arg-type]
        "sounds": provenance.sound_facts(plain),  # type: ignore[arg-type]
    }
    return ModelParts(
        source=str(path),
        name=facts["sounds"]["name"] or state["signature"],
        lm=encoders.with_widths(lm_config(config), shapes),
        shapes=shapes,
        read_lm=lambda: best,
        codec=lambda: read_codec(reference),
        sample_rate=int(config.sample_rate),
        window_s=float(config.dataset.segment_duration),
        provenance=facts,
        beat_time=_run_beat_time(plain),  # type: ignore[arg-type]
    )


def _run_beat_time(config: Mapping[str, Any]) -> BeatTime | None:
    """Gives how the model of a run's checkpoint counts; None in clock time."""
    grid = BeatGrid.parse(config)
    if grid is None:
        return None
    section = config["dset"]
    return BeatTime(
        frames_per_beat=int(section["codec_frames"]),
        beats_per_bar=grid.beats_per_bar,
        bpm=float(section["bpm"]),
        bpm_range=tuple(section["bpm_range"]),
    )


def _from_package(folder: Path, *, name: str) -> ModelParts:
    package = read_package(folder / LM_PACKAGE)
    if package.config is None:
        raise MicroMusicGenError(f"{package.path} names a pretrained model instead of holding one; name that one")
    config = package.config
    stereo = config.get("interleave_stereo_codebooks")
    if stereo is not None and stereo.use:
        raise MicroMusicGenError(
            f"{folder} holds a stereo model, which interleaves two codecs; play it with audiocraft"
        )
    _drop_training_only(config)
    state = package.state
    ours = plain_note(package)
    return ModelParts(
        source=str(package.path),
        name=str(ours.get("name", name)),
        lm=lm_config(config),
        shapes={key: tuple(tensor.shape) for key, tensor in state.items()},
        read_lm=lambda: state,
        codec=lambda: codec_parts.from_folder(folder),
        sample_rate=int(config.sample_rate),
        window_s=float(config.dataset.segment_duration),
        provenance=ours.get("provenance", {}),
    )


def _drop_training_only(config: Any) -> None:
    """Removes what audiocraft's configs say about training a conditioner and its builders don't take when playing."""
    conditioners = config.get("conditioners") or {}
    for group, keys in (("args", ("merge_text_conditions_p", "drop_desc_p")), ("self_wav", ())):
        for key in keys:
            if group in conditioners:
                conditioners[group].pop(key, None)
    chroma = (conditioners.get("self_wav") or {}).get("chroma_stem")
    if chroma is not None:
        chroma.pop("cache_path", None)
