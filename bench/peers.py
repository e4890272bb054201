"""The engines that are compared, behind one face: ours, audiocraft's own MusicGen, transformers' MusicGen.

Each is driven by its public calls where it has them; where one has not, the class says what is done instead. Sampling
is the same everywhere: top 250, temperature 1. A model that listens to a condition gets the same random vectors in all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from models import CONDITION_LENGTH, release_config

TOP_K = 250
SEED = 0


class Engine(Protocol):
    """One model in one engine. guidance: None leaves conditions out, 1 is guidance off."""

    num_codebooks: int
    card: int
    frame_rate: float

    def __init__(self, folder: Path, *, device: str, precision: str) -> None:
        """Loads the model in `folder`, which models.prepared gave."""

    def codes(self, batch: int, duration_s: float, *, guidance: float | None = None) -> torch.Tensor:
        """Gives codes [B, K, T]: the LM alone."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L]: the codec alone."""

    def first_chunk(self, duration_s: float, chunk_s: float) -> torch.Tensor:
        """Gives the first audio of a clip of `duration_s`; of engines that can't stream, the whole clip."""


def synchronise(device: str) -> None:
    """Waits until the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def random_condition(folder: Path, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gives embeddings [B, S, D] and mask [B, S] of the condition.

    Random vectors, 768 wide as T5-base gives them, through the model's own projection to its width.
    """
    from safetensors import safe_open

    with safe_open(folder / "micro" / "model.safetensors", framework="pt") as file:
        stem = "condition_provider.conditioners.description.output_proj"
        weight, bias = file.get_tensor(f"{stem}.weight"), file.get_tensor(f"{stem}.bias")
    generator = torch.Generator().manual_seed(SEED)
    vectors = torch.randn(batch, CONDITION_LENGTH, weight.shape[1], generator=generator)
    return vectors @ weight.T + bias, torch.ones(batch, CONDITION_LENGTH, dtype=torch.bool)


class Ours:
    """micro_musicgen."""

    def __init__(self, folder: Path, *, device: str, precision: str) -> None:
        from micro_musicgen import MicroMusicGen

        self.folder = folder
        if precision == "int8_everywhere":
            from micro_musicgen.engine import linear

            linear.PACKED_FROM = linear.INT8_FROM = 0
            precision = "int8"
        self.model = MicroMusicGen.get_pretrained(folder / "micro", device=device, precision=precision)
        shape = release_config(folder)["lm"]["transformer_lm"]
        self.num_codebooks, self.card = shape["n_q"], shape["card"]
        self.frame_rate = self.model.frame_rate

    def codes(self, batch: int, duration_s: float, *, guidance: float | None = None) -> torch.Tensor:
        """Gives codes [B, K, T]."""
        self.model.set_generation_params(
            duration=duration_s, seed=SEED, top_k=TOP_K, temperature=1.0, cfg_coef=guidance
        )
        conditions = {} if guidance is None else condition_ours(self, batch)
        made: torch.Tensor = self.model.codes(batch, **conditions)
        return made

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L]."""
        return self.model.decode(codes)

    def first_chunk(self, duration_s: float, chunk_s: float) -> torch.Tensor:
        """Gives the first chunk of a stream; the rest is not made."""
        self.model.set_generation_params(duration=duration_s, seed=SEED, top_k=TOP_K, temperature=1.0)
        return next(iter(self.model.stream(duration=duration_s, chunk_s=chunk_s)))

    def score(self, codes: torch.Tensor) -> float:
        """Gives the cross-entropy of `codes` [B, K, T], mean nat a code, under this engine's own precision."""
        from micro_musicgen.engine.scoring import code_cross_entropy

        return float(code_cross_entropy(self.model, codes))


def condition_ours(engine: Ours, batch: int) -> dict[str, Any]:
    """Gives what our `codes` takes for the random condition, with the null branch that guidance needs."""
    embeddings, mask = random_condition(engine.folder, batch)
    null = {"description": (torch.zeros_like(embeddings), torch.zeros_like(mask))}
    return {"conditions": ({"description": (embeddings, mask)}, null)}


class Audiocraft:
    """audiocraft 1.3.0 with this project's patches, without which it does not load here. It can't stream."""

    def __init__(self, folder: Path, *, device: str, precision: str) -> None:
        from micro_musicgen.upstream import audiocraft_module

        self.folder = folder
        self.model = audiocraft_module("models").MusicGen.get_pretrained(str(folder / "audiocraft"), device=device)
        self.num_codebooks = int(self.model.lm.n_q)
        self.card = int(self.model.lm.card)
        self.frame_rate = float(self.model.frame_rate)
        self.device = device

    def codes(self, batch: int, duration_s: float, *, guidance: float | None = None) -> torch.Tensor:
        """Gives codes [B, K, T]. With a condition it always computes both branches, also where guidance is off."""
        self.model.set_generation_params(duration=duration_s, top_k=TOP_K, temperature=1.0, cfg_coef=guidance or 1.0)
        texts = [None if guidance is None else "given"] * batch
        if guidance is not None:
            self._listen(batch)
        attributes, _ = self.model._prepare_tokens_and_attributes(texts, None)
        made: torch.Tensor = self.model._generate_tokens(attributes, None)
        return made

    def _listen(self, batch: int) -> None:
        """Has the text conditioner give the random condition for a text and nothing for none."""
        embeddings, mask = (tensor.to(self.device) for tensor in random_condition(self.folder, batch))
        conditioner = self.model.lm.condition_provider.conditioners["description"]
        conditioner.tokenize = lambda texts: torch.tensor([text is not None for text in texts], device=self.device)

        def forward(heard: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            both = [x.repeat(len(heard) // batch, *[1] * (x.dim() - 1)) for x in (embeddings, mask)]
            return both[0].to(self.model.lm.emb[0].weight.dtype) * heard[:, None, None], both[1] & heard[:, None]

        conditioner.forward = forward

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L]."""
        wav: torch.Tensor = self.model.generate_audio(codes)
        return wav

    def first_chunk(self, duration_s: float, chunk_s: float) -> torch.Tensor:
        """Gives the whole clip, without which there is no sound."""
        return self.decode(self.codes(1, duration_s))


class Transformers:
    """transformers' MusicGen: `MusicgenForCausalLM.generate` with a static cache, and its EnCodec. It can't stream."""

    def __init__(self, folder: Path, *, device: str, precision: str) -> None:
        import hf

        transformers = hf.transformers_module()
        written = hf.written(folder)
        self.folder, self.device = folder, device
        self.lm = transformers.MusicgenForCausalLM.from_pretrained(written / "lm").eval().to(device)
        self.codec: Any = None
        if (written / "codec").is_dir():
            self.codec = transformers.EncodecModel.from_pretrained(written / "codec").eval().to(device)
        release = release_config(folder)
        shape = release["lm"]["transformer_lm"]
        self.num_codebooks, self.card = shape["n_q"], shape["card"]
        self.frame_rate = release["sample_rate"] / hf.hop_samples(release["codec"])

    @torch.no_grad()
    def codes(
        self, batch: int, duration_s: float, *, guidance: float | None = None, greedy: bool = False
    ) -> torch.Tensor:
        """Gives codes [B, K, T]."""
        start = torch.full((batch * self.num_codebooks, 1), self.card, device=self.device)
        max_length = round(duration_s * self.frame_rate) + self.num_codebooks
        given: dict[str, Any] = {"cache_implementation": "static"}
        if guidance is not None:
            given = self._condition(batch, guidance, max_length)
        made: torch.Tensor = self.lm.generate(
            start,
            # The start token is the padding token, too: without a mask of its own it would be hidden.
            attention_mask=torch.ones(batch, 1, dtype=torch.long, device=self.device),
            max_length=max_length,
            do_sample=not greedy,
            top_k=None if greedy else TOP_K,
            num_beams=1,
            num_return_sequences=1,
            **given,
        )
        return made

    def _condition(self, batch: int, guidance: float, max_length: int) -> dict[str, Any]:
        """Gives what `generate` takes. Its own static cache has no room for the condition, so one is made that has."""
        import hf

        library = hf.transformers_module()
        heard, config = random_condition(self.folder, batch)[0].to(self.device), self.lm.config
        own = library.StaticCache(config=config, max_cache_len=max_length)
        cache = library.EncoderDecoderCache(own, library.DynamicCache(config=config))
        if guidance <= 1:
            return {"past_key_values": cache, "encoder_hidden_states": heard}
        # Both branches are one batch; the null branch sees zeros, which are not masked: as in audiocraft.
        both = torch.cat([heard, torch.zeros_like(heard)])
        return {"past_key_values": cache, "encoder_hidden_states": both, "guidance_scale": guidance}

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Gives audio [B, C, L].

        Raises:
            NotImplementedError: its EnCodec can't be this codec.
        """
        if self.codec is None:
            raise NotImplementedError((self.folder / "transformers" / "no_codec.txt").read_text(encoding="utf-8"))
        wav: torch.Tensor = self.codec.decode(codes[None], [None]).audio_values
        return wav

    def first_chunk(self, duration_s: float, chunk_s: float) -> torch.Tensor:
        """Gives the whole clip, without which there is no sound."""
        return self.decode(self.codes(1, duration_s))


class Machine:
    """No engine: the process in which the machine's own rates are measured."""

    num_codebooks, card, frame_rate = 1, 2, 1.0

    def __init__(self, folder: Path, *, device: str, precision: str) -> None:
        torch.zeros(1, device=device)


ENGINES: dict[str, Any] = {
    "ours": Ours,
    "audiocraft": Audiocraft,
    "transformers": Transformers,
    "machine": Machine,
}
