"""What a run, a codec or a release is, without building it: the lines of `micro-musicgen info`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from micro_musicgen import checkpoints, references
from micro_musicgen.codec import parts as codec_parts
from micro_musicgen.codec.builder import frame_samples
from micro_musicgen.codec.parts import CodecParts
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import lm_spec
from micro_musicgen.release import decoder, encoders
from micro_musicgen.release.decoder import DecoderParts
from micro_musicgen.release.source import ModelParts, read_parts
from micro_musicgen.upstream.packages import CODEC_PACKAGE, LM_PACKAGE, read_package


def describe(reference: str | Path) -> dict[str, Any]:
    """Gives plain facts about what `reference` names, in the order in which a person wants them.

    Keys "kind" ("language model", "codec" or "diffusion decoder"), "where" and the sizes are always there.

    Raises:
        MissingFileError: nothing of that name exists.
        MicroMusicGenError: it is damaged, or is neither.
    """
    found = references.resolve(reference)
    lone = None if found.kind == "hub" else _lone_part(found.local_path())
    if isinstance(lone, CodecParts):
        return {"kind": "codec", "where": lone.source, **_codec_facts(lone)}
    if lone is not None:
        return {"kind": "diffusion decoder", "where": lone.source, **_decoder_facts(lone)}
    parts = read_parts(reference)
    return {"kind": "language model", "form": _form(parts), "name": parts.name, "where": parts.source,
            **_lm_facts(parts), **_prefixed("conditions", encoders.described(parts.lm)),
            **_prefixed("codec", _codec_of(parts)), **_prefixed("decoder", _decoder_of(parts)),
            **_origin(parts.provenance)}  # fmt: skip


def _lone_part(path: Path) -> CodecParts | DecoderParts | None:
    """Gives the codec or the diffusion decoder when `path` holds one and no language model."""
    if path.is_dir() and (path / references.CHECKPOINT_NAME).is_file():
        path = path / references.CHECKPOINT_NAME
    if path.is_dir():
        lone = (path / CODEC_PACKAGE).is_file() and not (path / LM_PACKAGE).is_file()
        return codec_parts.from_folder(path) if lone and not codec_parts.is_release(path) else None
    if path.suffix == ".bin":
        return codec_parts.from_package(read_package(path)) if path.name == CODEC_PACKAGE else None
    state = checkpoints.load(path, lazily=True)
    if state["solver"] == decoder.SOLVER:
        return decoder.from_run(state, source=str(path))
    return codec_parts.from_run(state, source=str(path)) if state["solver"] == "compression" else None


def _form(parts: ModelParts) -> str:
    suffixes = {".safetensors": "micro release", ".bin": "audiocraft package", ".th": "run"}
    return suffixes.get(Path(parts.source).suffix, "checkpoint")


def _lm_facts(parts: ModelParts) -> dict[str, Any]:
    spec = lm_spec(parts.lm)
    # Counted in the file: conditioners and buffers are part of it, and what is stated is what is stored.
    total = sum(math.prod(shape) for shape in parts.shapes.values())
    return {
        "parameters": total,
        "embedding_parameters": spec.num_embedding_parameters,
        "other_parameters": total - spec.num_embedding_parameters,
        "backbone": spec.backbone,
        "layers": spec.num_layers,
        "dim": spec.dim,
        "heads": spec.num_heads,
        **({} if spec.num_kv_heads is None else {"kv_heads": spec.num_kv_heads}),
        "codebooks": spec.num_codebooks,
        "card": spec.card,
        "pattern": spec.pattern,
        "conditioning": spec.conditioning,
        "sample_rate": parts.sample_rate,
        "window_s": parts.window_s,
        **_beat_facts(parts),
    }


def _beat_facts(parts: ModelParts) -> dict[str, Any]:
    time = parts.beat_time
    if time is None:
        return {}
    low, high = time.bpm_range
    return {
        "time": "beats",
        "frames_per_beat": time.frames_per_beat,
        "beats_per_bar": time.beats_per_bar,
        "bpm": time.bpm,
        "bpm_range": f"{low:g} to {high:g}",
    }


def _codec_of(parts: ModelParts) -> dict[str, Any]:
    """A model whose codec is gone can still be described."""
    try:
        codec = parts.codec()
    except MicroMusicGenError as error:
        return {"missing": str(error)}
    return _codec_facts(codec)


def _codec_facts(codec: CodecParts) -> dict[str, Any]:
    if codec.pretrained is not None:
        return {"pretrained": codec.pretrained}
    config = codec.config
    hop_samples = frame_samples(config)
    buffers = sum(math.prod(t.shape) for name, t in codec.state.items() if "_codebook." in name)
    return {
        "parameters": sum(math.prod(t.shape) for t in codec.state.values()) - buffers,
        "codebook_values": buffers,
        "codebooks": config["rvq"]["n_q"],
        "card": config["rvq"]["bins"],
        "sample_rate": config["sample_rate"],
        "channels": config["channels"],
        "hop_samples": hop_samples,
        "frame_rate": config["sample_rate"] / hop_samples,
    }


def _decoder_of(parts: ModelParts) -> dict[str, Any]:
    found = parts.decoder()
    return {} if found is None else _decoder_facts(found)


def _decoder_facts(found: DecoderParts) -> dict[str, Any]:
    section, sampling = found.config["diffusion"], found.config["sampling"]
    return {
        "parameters": found.num_parameters,
        **found.config.get("frames", {}),
        "network": found.config["denoiser"]["name"],
        "objective": section["objective"],
        "schedule": section["schedule"],
        "timesteps": section["num_timesteps"],
        **{key: sampling[key] for key in ("sampler", "steps", "guidance") if key in sampling},
        "codebooks": ", ".join(str(number) for number in found.codebooks),
        "window_frames": found.window_frames,
        **_origin(found.origin),
    }


def _origin(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Gives provenance as one level of keys, leaving out what is not known."""
    flat: dict[str, Any] = {}
    for group, facts in origin.items():
        if group == "patches":
            counts = Counter(facts.values())
            flat[group] = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        elif isinstance(facts, Mapping):
            flat |= _prefixed(group, _origin(facts))
        elif facts is not None:
            flat[group] = facts
    return flat


def _prefixed(prefix: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in facts.items()}
