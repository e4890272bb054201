"""A diffusion decoder on its way between files: config and weights, from a run or a release. Nothing is built here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen import checkpoints, hub_client, references, weights
from micro_musicgen.codec import parts as codec_parts
from micro_musicgen.contracts import Codec, ReleaseConfig
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    import torch

SOLVER = "diffusion_decoder"
"""Name of the solver whose runs hold decoders."""
WEIGHTS_FILE = "decoder.safetensors"
OWN, PLAIN = "diffusion", "plain"
"""Instead of a reference: the release's own decoder, and the codec alone."""
MAX_WINDOW = 1 << 16
"""Frames of a window beyond which a file is taken for damaged: 22 minutes."""
_SECTIONS = ("diffusion", "denoiser", "decoder", "sampling")


@dataclass(frozen=True, kw_only=True)
class DecoderParts:
    """A diffusion decoder as plain data.

    source: where it was read from, for messages. config: the sections `diffusion`, `denoiser`, `decoder` and `sampling`
    of its run; `frames`, which says what it makes (`target`) and of what (`condition`); `codec_hashes`, those of the
    codec's first 1, 2, .. codebooks; `window_frames`. origin: what is known of its making.
    """

    source: str
    config: Mapping[str, Any]
    state: Mapping[str, torch.Tensor]
    shapes: weights.Shapes
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def codebooks(self) -> tuple[int, ...]:
        """The numbers of codebooks that it was trained with."""
        return codebooks(self.config)

    @property
    def window_frames(self) -> int:
        """Frames that it was trained on at once."""
        return int(self.config["window_frames"])

    @property
    def num_parameters(self) -> int:
        """Its trained weights; the statistics of its normalisers are none."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if "normaliser." not in name)

    def line(self) -> str:
        """Gives in one line what it is."""
        config = self.config
        kind, sampling = config["diffusion"]["objective"], config["sampling"]
        how = "one call" if kind == "regression" else f"{sampling['steps']} steps of {sampling['sampler']}"
        counts = ", ".join(str(number) for number in self.codebooks)
        return f"{config['denoiser']['name']}, {self.num_parameters:,} parameters, {kind}, {how}, codebooks {counts}"


def codebooks(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Gives the numbers of codebooks that a decoder of this `config` was trained with: those named, or all."""
    named = config["decoder"]["codebooks"]
    return tuple(range(1, len(config["codec_hashes"]) + 1)) if named is None else tuple(named)


def read_decoder(reference: str | Path) -> DecoderParts:
    """Gives the decoder that `reference` names: a run of solver=diffusion_decoder, its checkpoint, or a release.

    Raises:
        MissingFileError: nothing of that name exists.
        MicroMusicGenError: it is damaged, or holds no diffusion decoder.
    """
    found = references.resolve(reference, solver=SOLVER)
    if found.kind == "hub":
        assert found.hub_id is not None
        config = hub_client.download_file(found.hub_id, codec_parts.CONFIG_FILE)
        if config is None or not codec_parts.is_release(config.parent):
            raise MicroMusicGenError(
                f"{found.hub_id} on the Hub is no release of micro_musicgen; name one with a decoder"
            )
        return _named(from_release(hub_client.download_folder(found.hub_id, [codec_parts.CONFIG_FILE, WEIGHTS_FILE])),
                      str(reference))  # fmt: skip
    path = found.local_path()
    if found.kind == "release":
        return _named(from_release(path) if codec_parts.is_release(path) else None, str(reference))
    if path.is_file() and path.suffix == ".bin":
        return _named(None, str(reference))
    path = path / references.CHECKPOINT_NAME if found.kind == "run" else path
    return from_run(checkpoints.load(path, lazily=True), source=str(path))


def choose(reference: str | Path, own: Callable[[], DecoderParts | None], source: str) -> DecoderParts | None:
    """Gives the decoder that a user means: "plain" is None, "diffusion" the model's own, all else a reference.

    Raises:
        MicroMusicGenError: as `read_decoder`, or `source` has no decoder of its own.
    """
    if reference == PLAIN:
        return None
    if reference != OWN:
        return read_decoder(reference)
    found = own()
    if found is None:
        raise MicroMusicGenError(f"{source} has no diffusion decoder of its own; name the run of one, or use {PLAIN!r}")
    return found


def check_fit(config: Mapping[str, Any], codec: Codec, *, source: str) -> None:
    """Refuses a decoder that was not trained on the codes of `codec`. config: as `DecoderParts` has it.

    Raises:
        MicroMusicGenError: naming both and what differs.
    """
    from micro_musicgen.diffusion.code_condition import condition_width

    pair = config.get("frames") or {"target": "codec", "condition": "codes"}
    if (pair["target"], pair["condition"]) != ("codec", "codes"):
        raise MicroMusicGenError(
            f"{source} makes {pair['target']} frames of {pair['condition']}, no sound of codes; name a run of "
            "frames.target=codec frames.condition=codes"
        )
    hashes, counts, section = tuple(config["codec_hashes"]), codebooks(config), config["diffusion"]
    if codec.content_hash not in hashes:
        raise MicroMusicGenError(
            f"the decoder {source} was trained on another codec ({hashes[-1] if hashes else 'none'}) than this one "
            f"({codec.content_hash}); name a decoder of this codec, or play through {PLAIN!r}"
        )
    if codec.num_codebooks not in counts:
        known = ", ".join(str(number) for number in counts)
        raise MicroMusicGenError(
            f"the decoder {source} was trained with {known} codebooks, and the codes have "
            f"{codec.num_codebooks}; name one that knows this number, or play through {PLAIN!r}"
        )
    wanted = (codec.latent_dim, condition_width(codec.latent_dim, counts))
    stated = (section["channels"], section["condition_channels"])
    if wanted != stated:
        raise MicroMusicGenError(
            f"the decoder {source} gives {stated[0]} channels from {stated[1]}, and this codec needs {wanted[0]} "
            f"from {wanted[1]}; export it again"
        )


def _named(found: DecoderParts | None, reference: str) -> DecoderParts:
    if found is None:
        raise MicroMusicGenError(
            f"{reference} holds no diffusion decoder; name the run of one, or play through {PLAIN!r}"
        )
    return found


def from_run(state: Mapping[str, Any], *, source: str) -> DecoderParts:
    """Gives the decoder of a run's checkpoint: its best weights. It may be one of other things than codes.

    Raises:
        MicroMusicGenError: a run of another solver, or one without the facts that it takes.
    """
    from omegaconf import OmegaConf

    from micro_musicgen.diffusion.builder import diffusion_config

    if state["solver"] != SOLVER:
        raise MicroMusicGenError(
            f"{source} is a run of solver={state['solver']}, no diffusion decoder; name a run of solver={SOLVER}/..."
        )
    run = OmegaConf.create(state["config"])
    assert OmegaConf.is_dict(run), type(run)
    facts = (state["training"].get("extra") or {}).get("decoder")
    if facts is None or "frames" not in run:
        raise MicroMusicGenError(f"{source} does not say what it was trained on; go on training it, or use another run")
    best = {name: tensor.clone() for name, tensor in state["best"]["model"].items()}
    pair = {key: run.frames[key] for key in ("target", "condition")}
    config = {**diffusion_config(run), "frames": pair, **facts}
    origin = {
        "signature": state["signature"],
        "updates": state["training"].get("updates_done"),
        "seed": run.get("seed"),
    }
    return _checked(
        DecoderParts(
            source=source,
            config=config,
            state=best,
            shapes={name: tuple(tensor.shape) for name, tensor in best.items()},
            origin=origin,
        )
    )


def from_release(folder: Path) -> DecoderParts | None:
    """Gives the decoder of a release folder; None when it plays through the codec alone.

    Raises:
        MicroMusicGenError: a file is missing, damaged, or not the one that was released.
    """
    config = codec_parts.read_release_config(folder)
    if config.decoder is None:
        return None
    plain = dict(config.decoder)
    state = weights.LazyWeights(check_release(folder, config))
    origin = plain.pop("origin", {})
    return _checked(DecoderParts(source=str(state.path), config=plain, state=state, shapes=state.shapes, origin=origin))


def check_release(folder: Path, config: ReleaseConfig) -> Path:
    """Gives the path of a release's decoder after comparing it with its hash; `config` says that there is one.

    Raises:
        MissingFileError: there is no such file.
        MicroMusicGenError: it is not the file that was released.
    """
    return codec_parts.checked_file(folder, WEIGHTS_FILE, config)


def write_release(found: DecoderParts, folder: Path) -> dict[str, Any]:
    """Gives what a release's config says about a decoder, after writing its weights to `folder`."""
    weights.write_weights(folder / WEIGHTS_FILE, found.state)
    return {**found.config, "origin": dict(found.origin)}


def _checked(found: DecoderParts) -> DecoderParts:
    """Refuses facts that nothing could be built from, all that is wrong in one line."""
    config, faults = found.config, []
    for section in _SECTIONS:
        if not isinstance(config.get(section), Mapping):
            faults.append(f"no section {section}")
    counts = (config.get("decoder") or {}).get("codebooks")
    if counts is not None and not _are_counts(counts):
        faults.append(f"decoder.codebooks {counts!r} is no list of numbers of codebooks")
    window = config.get("window_frames")
    if not isinstance(window, int) or not 1 <= window <= MAX_WINDOW:
        faults.append(f"window_frames {window!r} is not in 1 to {MAX_WINDOW}")
    if not isinstance(config.get("codec_hashes"), list | tuple):
        faults.append("no codec_hashes")
    if faults:
        raise MicroMusicGenError(f"{found.source} is not a diffusion decoder: {'; '.join(faults)}; export it again")
    return found


def _are_counts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, int) and one > 0 for one in value)
