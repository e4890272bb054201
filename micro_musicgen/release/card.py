"""The README.md of a release: what the model is, how to play it, and what may be done with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micro_musicgen.codec import codebooks
from micro_musicgen.codec.pretrained import KNOWN
from micro_musicgen.contracts import BeatTime, LMSpec
from micro_musicgen.data.licenses import UNKNOWN
from micro_musicgen.lm.scales import TRANSFORMER


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card is written from.

    license_id: what the maker chose for the weights, None when nothing was chosen: then nothing is claimed.
    pretrained_codec: the name of a codec that is not part of the release. num_codec_parameters: None when unknown.
    decoder: what its diffusion decoder is, in one line; None where there is none. beat_time: how it counts, None in
    clock time.
    """

    name: str
    form: str
    spec: LMSpec
    num_lm_parameters: int
    num_codec_parameters: int | None
    pretrained_codec: str | None
    sample_rate: int
    window_s: float
    license_id: str | None
    provenance: Mapping[str, Any]
    decoder: str | None = None
    beat_time: BeatTime | None = None


def render_card(facts: CardFacts) -> str:
    """Gives the card as Markdown with the YAML front matter that the Hub reads."""
    sections = [_front_matter(facts), _opening(facts), _play(facts), _sizes(facts), _sounds(facts), _licence(facts)]
    return "\n\n".join([*sections, _limits(facts)]) + "\n"


def _front_matter(facts: CardFacts) -> str:
    lines = ["---", f"license: {facts.license_id or 'other'}"]
    if facts.license_id is None:
        lines.append("license_name: not-stated")
    tags = ["audio", "music", "musicgen", "micro-musicgen"]
    if facts.spec.conditioning == "none":
        tags.append("unconditional-audio-generation")
    lines += ["library_name: micro-musicgen", "tags:", *(f"- {tag}" for tag in tags), "---"]
    return "\n".join(lines)


def _opening(facts: CardFacts) -> str:
    kind = "without any prompt" if facts.spec.conditioning == "none" else "from text"
    title = " ".join(facts.name.split())
    return (
        f"# {title}\n\nA small language model over audio codes that makes music {kind}: mono, {facts.sample_rate} Hz, "
        f"trained on {_window(facts)} at a time. Made with micro_musicgen."
    )


def _window(facts: CardFacts) -> str:
    time = facts.beat_time
    if time is None:
        return f"{facts.window_s:g} seconds"
    low, high = time.bpm_range
    return (
        f"whole bars of {time.beats_per_bar} beats, {time.frames_per_beat} codec frames each, of music at {low:g} to "
        f"{high:g} BPM; it plays at any tempo, {time.bpm:g} BPM when none is given,"
    )


def _play(facts: CardFacts) -> str:
    here = json.dumps("PATH/OR/HUB-ID")
    ours = (
        "from micro_musicgen import MicroMusicGen\n"
        f"wav = MicroMusicGen.get_pretrained({here}).generate_unconditional(4)  # [4, 1, samples]"
    )
    upstream = (
        "import micro_musicgen.upstream  # mends audiocraft 1.3.0 for current torch\n"
        "from audiocraft.models import MusicGen\n"
        f"wav = MusicGen.get_pretrained({here}).generate_unconditional(4)"
    )
    code = upstream if facts.form == "audiocraft" else ours
    length = "--duration 8"
    if facts.beat_time is not None:
        length = f"--bars 4 --bpm {facts.beat_time.bpm:g} --loop"
    command = f"micro-musicgen generate PATH/OR/HUB-ID -n 4 {length} --out clips"
    return f"## Play it\n\n```python\n{code}\n```\n\nOr: `{command}`"


def _sizes(facts: CardFacts) -> str:
    spec = facts.spec
    embedding = spec.num_embedding_parameters
    codec = "fetched by name" if facts.num_codec_parameters is None else f"{facts.num_codec_parameters:,} parameters"
    rows = [
        ("language model", f"{facts.num_lm_parameters:,} parameters"),
        ("of these in embeddings and output heads", f"{embedding:,}"),
        ("the rest", f"{facts.num_lm_parameters - embedding:,}"),
        ("shape", _shape(spec)),
        ("codes", f"{spec.num_codebooks} codebooks of {spec.card}"),
        ("codec", codec),
        *([] if facts.decoder is None else [("diffusion decoder (`--decoder diffusion`)", facts.decoder)]),
    ]
    return "## Size\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _shape(spec: LMSpec) -> str:
    shape = f"{spec.num_layers} layers, width {spec.dim}, {spec.num_heads} heads"
    if spec.num_kv_heads not in (None, spec.num_heads):
        shape += f" on {spec.num_kv_heads} of keys and values"
    return shape if spec.backbone == TRANSFORMER else f"{spec.backbone}, {shape}, feed-forward width {spec.ffn_dim}"


def _sounds(facts: CardFacts) -> str:
    sounds = facts.provenance.get("sounds") or {}
    run = facts.provenance.get("run") or {}
    lines = []
    for split, what in (("train", "training"), ("valid", "validation")):
        if sounds.get(split):
            lines.append(f"- {what}: {sounds[split]['files']} files, {_length(sounds[split]['hours'])}")
    if run.get("updates"):
        lines.append(f"- {run['updates']} steps, run `{run['signature']}`, seed {run['seed']}")
    if run.get("started_from"):
        lines.append(f"- started from the weights of `{run['started_from']}`, whose licence holds here too")
    lines = lines or ["- not recorded"]
    said = "Say here what the sounds are and where they come from."
    return "\n\n".join(["## Trained on", "\n".join(lines), *_sound_licences(sounds.get("train") or {}), said])


def _sound_licences(train: Mapping[str, Any]) -> list[str]:
    """Gives the table of licences, the sources, and what follows from them, as paragraphs."""
    licenses: Mapping[str, Any] = train.get("licenses") or {}
    if not licenses:
        return ["Licences of the training sounds: not recorded."]
    table = ["Licences of the training sounds:", "", "| licence | files | length |", "|---|---|---|"]
    table += [f"| {_cell(name)} | {one['files']} | {_length(one['hours'])} |" for name, one in licenses.items()]
    paragraphs = ["\n".join(table)]
    sources = train.get("sources") or {}
    if set(sources) - {UNKNOWN}:
        paragraphs.append(
            "Sources: " + ", ".join(f"{_cell(name)} {one['files']}" for name, one in sources.items()) + "."
        )
    unknown = licenses.get(UNKNOWN, {}).get("files", 0)
    if unknown:
        paragraphs.append(
            f"**The licence of {unknown} of {train['files']} training files is unknown.** Whether they may be used "
            "for this, and these weights given away, is not settled: find out before you share them."
        )
    return paragraphs + _licence_terms(licenses)


def _licence_terms(licenses: Mapping[str, Any]) -> list[str]:
    """Gives what licences of the sounds ask for, where their names tell."""
    asked = {term for name in licenses if name.startswith("cc-by") for term in name.split("-")[1:]}
    terms = []
    if "by" in asked:
        terms.append("Some of the licences ask that the authors of the sounds be named: name them here.")
    if "nc" in asked:
        terms.append("Some do not allow commercial use of the sounds.")
    return terms


def _cell(text: str) -> str:
    """Gives text that others wrote so that it can't leave its place in a table or become markup."""
    return re.sub(r"([\\`*_\[\]|<>!#])", r"\\\1", text)


def _length(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _licence(facts: CardFacts) -> str:
    if facts.license_id is None:
        weights = (
            "Weights: nobody has chosen a licence yet, so none is claimed. If they are yours to give away, put one in "
            "the first lines of this file (for example `license: cc0-1.0` or `license: cc-by-4.0`, and remove "
            "`license_name`), or export again with `--license cc-by-4.0`."
        )
    else:
        weights = f"Weights: {facts.license_id}, as chosen by the maker."
    return f"## Licence\n\n{weights}\n\n{_codec_licence(facts)}"


def _codec_licence(facts: CardFacts) -> str:
    pretrained = facts.pretrained_codec
    if pretrained is None and (facts.provenance.get("codec") or {}).get("from_scratch"):
        return (
            "Codec: trained from scratch by the maker and part of these weights; nobody else's licence applies to it."
        )
    if pretrained is None:
        return (
            "Codec: part of this release. Where its weights come from is not recorded; their maker's licence applies."
        )
    name = codebooks.split(pretrained)[0]
    if Path(name).is_absolute():
        return (
            f"Codec: lies in a folder of the maker's, {Path(name).name}, is not part of this release, and has a "
            "licence of its own. Without that folder this release can't be played."
        )
    known = KNOWN.get(name)
    terms = f"is published under {known}" if known else "has a licence of its own; see its page"
    tail = ", which does not allow commercial use" if known and "NC" in known else ""
    return (
        f"Codec: [{pretrained}](https://huggingface.co/{name}) is fetched by name, is not part of this release, "
        f"and {terms}{tail}. That holds for whatever is played through it."
    )


def _limits(facts: CardFacts) -> str:
    return (
        "## Limits\n\n"
        "- It knows the sounds it was trained on and little else, and may repeat parts of them.\n"
        f"- It learned {facts.window_s:g} seconds at a time; longer clips are overlapping windows and may drift.\n"
        "- The codec loses detail, most of all in high frequencies and sharp attacks."
    )
