"""The conditioner `audio_prompt`: a few seconds of sound, as the codec's codes, that set the style of what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from micro_musicgen.conditioners.base import Conditioner, Kind, Surroundings, conditioners
from micro_musicgen.conditioners.fusing import CROSS_MAX_PERIOD, sin_embedding
from micro_musicgen.conditioners.settings import read_settings
from micro_musicgen.errors import MicroMusicGenError

POSITIONS = ("sinusoidal", "learned")


@dataclass(frozen=True)
class AudioPromptSettings:
    """duration_s: seconds heard, the longest prompt. dim: width of the codes' embeddings. modality: add a learned
    vector to every position. positions: sinusoidal | learned.
    """

    duration_s: float = 3.0
    dim: int = 64
    modality: bool = True
    positions: str = "sinusoidal"

    def __post_init__(self) -> None:
        if self.dim < 1 or self.duration_s <= 0 or self.positions not in POSITIONS:
            raise MicroMusicGenError(
                f"conditioner 'audio_prompt': duration_s {self.duration_s}, dim {self.dim}, positions "
                f"{self.positions!r}; expected more than 0, 1 or more, {' or '.join(POSITIONS)}"
            )


class PreparedAudio(NamedTuple):
    """codes: int64 [B, K, S], 0 where masked. mask: bool [B, S]."""

    codes: torch.Tensor
    mask: torch.Tensor


class AudioPromptConditioner(Conditioner):
    """Codes [K, T'] as S = round(duration_s * frame_rate) embeddings, one a frame: the K codebooks' are summed.

    Longer prompts are cut, shorter ones padded and masked; None, and a prompt without a frame, is the null condition.
    """

    kind: ClassVar[Kind] = "audio"

    def __init__(self, settings: AudioPromptSettings, surroundings: Surroundings) -> None:
        super().__init__()
        self.settings = settings
        self.num_positions = max(1, round(settings.duration_s * surroundings.frame_rate))
        self.dim = surroundings.dim
        self.card = surroundings.card
        count = surroundings.num_codebooks
        self.embeddings = nn.ModuleList(nn.Embedding(self.card, settings.dim) for _ in range(count))
        for each in self.embeddings:
            assert isinstance(each, nn.Embedding)
            nn.init.normal_(each.weight, std=count**-0.5)  # their sum is of size 1, and what is projected from it
        self.projection = nn.Linear(settings.dim, self.dim, bias=False)
        nn.init.normal_(self.projection.weight, std=settings.dim**-0.5)
        is_learned = settings.positions == "learned"
        self.positions = nn.Parameter(0.5 * torch.randn(self.num_positions, self.dim)) if is_learned else None
        self.modality = nn.Parameter(torch.randn(self.dim) * self.dim**-0.5) if settings.modality else None

    def prepare(self, raw: Sequence[torch.Tensor | None]) -> PreparedAudio:
        """Gives the codes of B prompts on the device of the weights."""
        count, device = len(self.embeddings), self.projection.weight.device
        codes = torch.zeros(len(raw), count, self.num_positions, dtype=torch.int64, device=device)
        mask = torch.zeros(len(raw), self.num_positions, dtype=torch.bool, device=device)
        for row, prompt in enumerate(raw):
            if prompt is not None:
                heard = self._checked(prompt)[:, : self.num_positions]
                codes[row, :, : heard.shape[1]] = heard.to(device)
                mask[row, : heard.shape[1]] = True
        return PreparedAudio(codes, mask)

    def forward(self, prepared: PreparedAudio) -> tuple[torch.Tensor, torch.Tensor]:
        """Gives embeddings [B, S, D] and mask [B, S]."""
        codes, mask = prepared
        summed = torch.stack([each(codes[:, level]) for level, each in enumerate(self.embeddings)]).sum(0)
        embedded = self.projection(summed)
        embedded = embedded + self._positions(embedded)
        if self.modality is not None:
            embedded = embedded + self.modality
        return embedded * mask[..., None], mask

    def _positions(self, like: torch.Tensor) -> torch.Tensor:
        if self.positions is not None:
            return self.positions
        return sin_embedding(self.num_positions, self.dim, CROSS_MAX_PERIOD).to(like)

    def _checked(self, prompt: Any) -> torch.Tensor:
        count = len(self.embeddings)
        shape = tuple(prompt.shape) if isinstance(prompt, torch.Tensor) else type(prompt).__name__
        if not isinstance(prompt, torch.Tensor) or prompt.dim() != 2 or prompt.shape[0] != count:
            raise MicroMusicGenError(f"an audio prompt is codes [{count}, frames] of the model's codec, not {shape}")
        if prompt.is_floating_point() or prompt.is_complex() or prompt.dtype == torch.bool:
            raise MicroMusicGenError(f"an audio prompt is codes, whole numbers, not {prompt.dtype}")
        if prompt.numel() and not 0 <= int(prompt.min()) <= int(prompt.max()) < self.card:
            raise MicroMusicGenError(
                f"an audio prompt's codes go from {int(prompt.min())} to {int(prompt.max())}; this model's codec has "
                f"0 to {self.card - 1}"
            )
        return prompt.long()


@conditioners.register("audio_prompt")
def make_audio_prompt(plain: Mapping[str, Any], surroundings: Surroundings) -> AudioPromptConditioner:
    """Gives the conditioner of settings as `AudioPromptSettings` describes them."""
    settings = read_settings(AudioPromptSettings, plain, source="conditioner 'audio_prompt'")
    return AudioPromptConditioner(settings, surroundings)
