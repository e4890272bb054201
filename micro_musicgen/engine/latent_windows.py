"""Frames of any number through a network that sees a window at a time: which windows, and how they are joined."""

from __future__ import annotations

from collections.abc import Callable

import torch

Refine = Callable[[torch.Tensor, int], torch.Tensor]
"""Gives latents [B, D, n] of codes [B, K, n] whose first frame is that number of the clip."""

OVERLAP = 8
"""Windows share one frame in so many with the next one, over which the one fades into the other."""


class LatentWindows:
    """Codes in, latents out, window by window: the last one ends with the clip and is as long as the others; a clip
    shorter than a window is one by itself.

    Invariant: all latents together depend on all codes together, and not on how they were handed in.
    """

    def __init__(self, refine: Refine, window: int) -> None:
        """window: frames, 1 or more."""
        assert window >= 1, window
        self._refine, self.window = refine, window
        self.overlap = window // OVERLAP
        self._codes: torch.Tensor | None = None
        self._held_from = 0  # the clip's frame with which _codes begins
        self._next = 0  # the first frame of the next window; all frames before it have been given
        self._tail: torch.Tensor | None = None  # the latents of the last window from frame _next on, [B, D, overlap]

    def push(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Gives the latents [B, D, n] that are final now that codes [B, K, n] have come too, as pieces, maybe none."""
        self._codes = codes if self._codes is None else torch.cat([self._codes, codes], dim=-1)
        pieces = []
        while self._known - self._next >= self.window:
            latents = self._made(self._next)
            step = self.window - self.overlap
            pieces.append(self._faded(latents[..., :step]))
            self._tail = latents[..., step:]
            self._next += step
        self._forget()
        return pieces

    def finish(self) -> list[torch.Tensor]:
        """Gives the latents of the frames that are left."""
        if self._codes is None or self._known == 0:
            return []
        if self._tail is None:
            return [self._refine(self._codes, 0)]
        if self._known == self._next + self.overlap:
            return [self._tail] if self.overlap else []
        start = self._known - self.window
        return [self._faded(self._made(start)[..., self._next - start :])]

    @property
    def _known(self) -> int:
        return self._held_from + (0 if self._codes is None else self._codes.shape[-1])

    def _made(self, start: int) -> torch.Tensor:
        assert self._codes is not None and start >= self._held_from, (start, self._held_from)
        first = start - self._held_from
        return self._refine(self._codes[..., first : first + self.window], start)

    def _faded(self, latents: torch.Tensor) -> torch.Tensor:
        """Gives latents whose first frames come out of those of the window before."""
        if self._tail is None or not self.overlap:
            return latents
        share = torch.arange(1, self.overlap + 1, device=latents.device) / (self.overlap + 1)
        blend = torch.lerp(self._tail, latents[..., : self.overlap], share)
        return torch.cat([blend, latents[..., self.overlap :]], dim=-1)

    def _forget(self) -> None:
        """Drops the codes that no window will ask for: the last one begins behind the one that was made last."""
        if self._codes is None or self._tail is None:
            return
        keep_from = self._next - (self.window - self.overlap)
        self._codes = self._codes[..., keep_from - self._held_from :].clone()
        self._held_from = keep_from
