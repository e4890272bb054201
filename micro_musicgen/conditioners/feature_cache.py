"""Features of texts that need not be computed again: in memory up to a size, and on disk for the next run.

On disk they lie in a folder of safetensors files, `FIRST.safetensors`, each written once and never changed: processes
that write at the same time add files beside each other, and one that dies leaves none behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch

from micro_musicgen import storage

logger = logging.getLogger(__name__)

MEMORY_BYTES = 256 << 20


class RecentFeatures:
    """Tensors by key in memory. Invariant: they hold at most `capacity` bytes; the longest unused one goes first."""

    def __init__(self, capacity: int = MEMORY_BYTES) -> None:
        self.capacity = capacity
        self._held: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> torch.Tensor | None:
        """Gives the tensor under `key`, not to be written to; None when it isn't held."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
            return self._held.get(key)

    def put(self, key: Hashable, tensor: torch.Tensor) -> None:
        """Holds `tensor` under `key`, unless that alone is too large."""
        with self._lock:
            if key in self._held or tensor.nbytes > self.capacity:
                return
            self._held[key] = tensor
            self._bytes += tensor.nbytes
            while self._bytes > self.capacity:
                self._bytes -= self._held.popitem(last=False)[1].nbytes

    def __len__(self) -> int:
        return len(self._held)


class FeatureCache:
    """Features fp32 [S, width] of texts, 1 <= S <= max_length, on disk in `folder`. What is damaged is not there."""

    def __init__(self, folder: Path, *, width: int, max_length: int) -> None:
        """Opens what is there: files that can't be read are removed, and their texts computed again."""
        self.folder = folder
        self.width = width
        self.max_length = max_length
        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._open(path)

    def get(self, text: str) -> torch.Tensor | None:
        """Gives the features of `text`; None when they aren't there."""
        key = _key(text)
        if key not in self._files:
            return None
        found: torch.Tensor = self._files[key].get_tensor(key).clone()
        fits = found.dim() == 2 and 1 <= found.shape[0] <= self.max_length and found.shape[1] == self.width
        if not fits or found.dtype != torch.float32 or not bool(found.isfinite().all()):
            logger.warning("features in %s are not what they should be; they are computed again", self.folder)
            del self._files[key]
            return None
        return found

    def add(self, features: Mapping[str, torch.Tensor]) -> None:
        """Keeps features by text, in a file of their own.

        Raises:
            MicroMusicGenError: the folder cannot be written to, or the disk is full.
        """
        from safetensors.torch import save

        keyed = {_key(text): tensor.contiguous() for text, tensor in features.items()}
        if not keyed:
            return
        path = self.folder / f"{hashlib.sha256(''.join(sorted(keyed)).encode()).hexdigest()[:16]}.safetensors"
        with storage.atomic_write(path) as file:
            file.write(save(keyed))
        self._open(path)

    def __contains__(self, text: str) -> bool:
        return _key(text) in self._files

    def __len__(self) -> int:
        return len(self._files)

    def _open(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            # Stays open: the header, which names every text, is read once. The tensors are mapped, not held.
            file: Any = safe_open(path, framework="pt")
            self._files.update(dict.fromkeys(file.keys(), file))
        except (SafetensorError, OSError) as error:
            logger.warning("%s is damaged and is made again: %s", path, " ".join(str(error).split())[:120])
            with contextlib.suppress(OSError):
                path.unlink()


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
