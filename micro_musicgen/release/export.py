"""Writes a release folder of a trained run: whole, or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen import storage, weights
from micro_musicgen.codec import codebooks
from micro_musicgen.codec import parts as codec_parts
from micro_musicgen.codec.builder import is_own
from micro_musicgen.codec.parts import CodecParts
from micro_musicgen.codec.resolve import build_own
from micro_musicgen.conditioners.provider import is_ours
from micro_musicgen.contracts import LMSpec, ReleaseConfig
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import FRAME_RATE, lm_spec
from micro_musicgen.lm.scales import TRANSFORMER
from micro_musicgen.registry import Registry
from micro_musicgen.release import decoder as decoders
from micro_musicgen.release import encoders, provenance
from micro_musicgen.release.card import CardFacts, render_card
from micro_musicgen.release.decoder import DecoderParts
from micro_musicgen.release.load import build_model, check_fit
from micro_musicgen.release.source import AUDIOCRAFT_FILES, CARD_FILE, LM_WEIGHTS, MICRO_FILES, ModelParts, read_parts
from micro_musicgen.upstream.packages import CODEC_PACKAGE, LM_PACKAGE, write_package, write_pretrained_package

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Export:
    """A model that was checked and is about to be written. provenance: that of the model and of this export."""

    name: str
    parts: ModelParts
    codec: CodecParts
    spec: LMSpec
    lm_state: dict[str, torch.Tensor]
    num_lm_parameters: int
    num_codec_parameters: int | None
    provenance: dict[str, Any]
    decoder: DecoderParts | None = None


Writer = Callable[[Export, Path], None]
forms: Registry[Writer] = Registry("release form")
"""Writers of release folders by name. Each fills an empty folder with everything but the card."""


def export(
    run: str | Path,
    out: Path | str,
    *,
    form: str = "micro",
    name: str | None = None,
    license_id: str | None = None,
    decoder: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Gives `out` after writing the release of `run` there.

    run: signature, run folder or data set name (its newest run); a release in another form serves as well. form:
    "micro" (safetensors and JSON) or "audiocraft" (its two .bin files). name: on the card, the folder's by default.
    license_id: the licence that the maker chose; none is claimed without it. decoder: reference of a diffusion decoder
    to ship beside the codec; "plain" leaves out the one that `run`, a release then, has.

    The folder appears when it is complete. overwrite: replaces a release that is there, and nothing else.

    Raises:
        MissingFileError: the run, or the codec it was trained on, does not exist.
        MicroMusicGenError: unknown form, `out` is taken, or codec, language model and decoder don't fit.
    """
    out = Path(out).expanduser()
    write = forms.get(form)
    if license_id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license_id):
        raise MicroMusicGenError(f"license {license_id!r} is no licence id; use one like cc-by-4.0, cc0-1.0 or mit")
    _check_target(out, overwrite=overwrite)
    found = _collect(read_parts(run), name or out.resolve().name, decoder)
    scratch = storage.ensure_writable(out.resolve().with_name(f".{out.resolve().name}.{os.getpid()}.tmp"))
    try:
        write(found, scratch)
        storage.write_text(scratch / CARD_FILE, render_card(_card_facts(found, form, license_id)))
        _swap_in(scratch, out.resolve())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _check_target(out: Path, *, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise MicroMusicGenError(f"{out} is a file; name a folder to write the release to")
    held = {path.name for path in out.iterdir()}
    if not held:
        return
    known = {*MICRO_FILES, encoders.FOLDER, *AUDIOCRAFT_FILES}
    is_release = bool(held & {codec_parts.CONFIG_FILE, LM_PACKAGE}) and held <= known
    if not is_release:
        raise MicroMusicGenError(f"{out} is not empty and is no release, so it is left alone; name another folder")
    if not overwrite:
        raise MicroMusicGenError(f"{out} already holds a release; name another folder, or add --overwrite")


def _collect(found: ModelParts, name: str, decoder: str | Path | None) -> Export:
    """Builds everything once, so that nothing is released that would not load."""
    codec = found.codec()
    spec = lm_spec(found.lm)
    chosen = found.decoder() if decoder is None else decoders.choose(decoder, found.decoder, found.source)
    num_codec_parameters, frame_rate = None, FRAME_RATE
    if codec.pretrained is None:
        built = build_own(codec)
        check_fit(spec, built, found, codec)
        num_codec_parameters, frame_rate = sum(p.numel() for p in built.model.parameters()), built.frame_rate
        if chosen is not None:
            decoders.check_fit(chosen.config, built, source=chosen.source)
    if chosen is not None:
        from micro_musicgen.release.decoder_model import build_decoder

        build_decoder(chosen)
    lm = build_model(found, frame_rate=frame_rate)
    return Export(
        name=name,
        parts=found,
        codec=codec,
        spec=spec,
        lm_state=lm.state_dict(),
        num_lm_parameters=sum(p.numel() for p in lm.parameters()),
        num_codec_parameters=num_codec_parameters,
        provenance={**found.provenance, "codec": dict(codec.origin), "exported_with": provenance.software()},
        decoder=chosen,
    )


@forms.register("micro")
def write_micro(found: Export, folder: Path) -> None:
    """Fills `folder` with `config.json`, `model.safetensors`, unless they go by name `codec.safetensors` and
    `text_encoder/`, and where there is one `decoder.safetensors`.
    """
    lm, encoder = encoders.released(found.parts.lm, found.parts.source)
    weights.write_weights(folder / LM_WEIGHTS, found.lm_state)
    if found.codec.pretrained is None:
        weights.write_weights(folder / codec_parts.WEIGHTS_FILE, found.codec.state)
    decoder = None if found.decoder is None else decoders.write_release(found.decoder, folder)
    hashes = {path.name: storage.file_hash(path) for path in sorted(folder.iterdir())}
    if encoder is not None:
        hashes |= encoders.copy_encoder(encoder, folder)
    time = found.parts.beat_time
    tempo = None if time is None else asdict(time)
    config = ReleaseConfig(
        name=found.name,
        lm=lm,
        codec=found.codec.config,
        codec_reference=found.codec.pretrained,
        conditioners=lm["conditioners"] or {},
        decoder=decoder,
        sample_rate=found.parts.sample_rate,
        window_s=found.parts.window_s,
        frames_per_beat=None if tempo is None else tempo.pop("frames_per_beat"),
        tempo=tempo,
        hashes=hashes,
        provenance=found.provenance,
    )
    storage.write_json(folder / codec_parts.CONFIG_FILE, config.to_dict())


def _check_audiocraft_loads(codec: str) -> None:
    name, number = codebooks.split(codec)
    if number is not None or name.startswith("descript/") or Path(name).is_absolute():
        raise MicroMusicGenError(f"audiocraft cannot load the codec {codec}; export with --format micro")


@forms.register("audiocraft")
def write_audiocraft(found: Export, folder: Path) -> None:
    """Fills `folder` with audiocraft's `state_dict.bin` and `compression_state_dict.bin`.

    `conditioners: {}` instead of null, which audiocraft's own loader trips over, so that no patch is needed for it.
    """
    if found.decoder is not None:
        raise MicroMusicGenError(
            "audiocraft has no diffusion decoder of codes; export with --format micro, or with --decoder plain"
        )
    if found.parts.beat_time is not None:
        raise MicroMusicGenError(
            "audiocraft knows no beat time, so this model would play at a tempo of its own; export with --format micro"
        )
    if found.spec.backbone != TRANSFORMER:
        raise MicroMusicGenError(
            f"audiocraft has no language model {found.spec.backbone}, so it could not load this model; "
            "export with --format micro"
        )
    if is_ours(found.parts.lm):
        kinds = sorted({str(each["model"]) for each in found.parts.lm["conditioners"].values()})
        raise MicroMusicGenError(
            f"audiocraft has no conditioner {' or '.join(kinds)}, so it could not load this model; "
            "export with --format micro"
        )
    if found.codec.pretrained is None and is_own(found.codec.config):
        raise MicroMusicGenError(
            f"audiocraft has no codec {found.codec.config['compression_model']}, so it could not load this model; "
            "export with --format micro"
        )
    config = {
        **found.parts.lm,
        "conditioners": found.parts.lm["conditioners"] or {},
        "dataset": {"segment_duration": found.parts.window_s},
        "sample_rate": found.parts.sample_rate,
        "channels": 1,
        "device": "cpu",
        "dtype": "float32",
        "compression_model_n_q": None,
        "interleave_stereo_codebooks": {"use": False, "per_timestep": False},
    }
    note = {"name": found.name, "provenance": found.provenance}
    write_package(folder / LM_PACKAGE, found.lm_state, config, note=note)
    if found.codec.pretrained is not None:
        _check_audiocraft_loads(found.codec.pretrained)
        write_pretrained_package(folder / CODEC_PACKAGE, found.codec.pretrained)
    else:
        codec_config = {**found.codec.config, "device": "cpu"}
        write_package(folder / CODEC_PACKAGE, found.codec.state, codec_config, note={"origin": found.codec.origin})


def _card_facts(found: Export, form: str, license_id: str | None) -> CardFacts:
    return CardFacts(
        name=found.name,
        form=form,
        spec=found.spec,
        num_lm_parameters=found.num_lm_parameters,
        num_codec_parameters=found.num_codec_parameters,
        pretrained_codec=found.codec.pretrained,
        sample_rate=found.parts.sample_rate,
        window_s=found.parts.window_s,
        license_id=license_id,
        provenance=found.provenance,
        decoder=None if found.decoder is None else found.decoder.line(),
        beat_time=found.parts.beat_time,
    )


def _swap_in(scratch: Path, out: Path) -> None:
    """Puts the finished folder in place; an older release stays until the new one is there."""
    if not out.exists():
        os.replace(scratch, out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    os.replace(out, old)
    try:
        os.replace(scratch, out)
    except OSError:
        os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)
