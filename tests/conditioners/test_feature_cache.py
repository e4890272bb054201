"""Features kept in memory and on disk: the same ones back, or none."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch

from micro_musicgen.conditioners.feature_cache import FeatureCache, RecentFeatures

WIDTH, LENGTH = 4, 8


def opened(folder: Path, width: int = WIDTH) -> FeatureCache:
    return FeatureCache(folder, width=width, max_length=LENGTH)


def features(seed: int, length: int = 3) -> torch.Tensor:
    return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_what_is_kept_comes_back_in_another_process(tmp_path: Path) -> None:
    cache = opened(tmp_path / "f")
    cache.add({"techno": features(0), "": features(1)})
    cache.add({"piano ♪": features(2, LENGTH)})
    cache.add({})
    again = opened(tmp_path / "f")
    for held in (cache, again):
        assert len(held) == 3 and "techno" in held and "jazz" not in held
        assert torch.equal(held.get("techno"), features(0)) and torch.equal(held.get("piano ♪"), features(2, LENGTH))
        assert held.get("jazz") is None
    assert len(list((tmp_path / "f").iterdir())) == 2


def test_damaged_files_are_removed_and_the_rest_is_read(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.add({"a": features(0)})
    (first,) = tmp_path.iterdir()
    cache.add({"b": features(1)})
    first.write_bytes(first.read_bytes()[:-7])
    (tmp_path / "nonsense.safetensors").write_bytes(b"x" * 100)
    again = opened(tmp_path)
    assert again.get("a") is None and torch.equal(again.get("b"), features(1))
    assert len(list(tmp_path.iterdir())) == 1
    again.add({"a": features(0)})
    assert torch.equal(opened(tmp_path).get("a"), features(0))


def test_features_of_another_shape_or_with_holes_are_not_used(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.add({"long": features(0, LENGTH + 1), "empty": features(0, 0), "nan": features(0) / 0.0, "good": features(0)})
    cache.add({"half": features(0).half()})
    found = opened(tmp_path)
    assert [text for text in ("long", "empty", "nan", "half", "good") if found.get(text) is not None] == ["good"]
    assert opened(tmp_path, width=WIDTH + 1).get("good") is None


def _write(folder: Path, seed: int) -> None:
    cache = opened(folder)
    for number in range(5):
        cache.add({f"text {number}": features(number), f"only {seed} {number}": features(seed)})


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(tmp_path, seed)) for seed in (10, 11)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    cache = opened(tmp_path)
    assert len(cache) == 15
    assert all(torch.equal(cache.get(f"text {n}"), features(n)) for n in range(5))


def test_memory_forgets_the_longest_unused() -> None:
    recent = RecentFeatures(capacity=3 * features(0).nbytes)
    for key in "abc":
        recent.put(key, features(0))
    assert recent.get("a") is not None
    recent.put("d", features(1))
    assert [key for key in "abcd" if recent.get(key) is not None] == ["a", "c", "d"]
    recent.put("huge", torch.zeros(100, WIDTH))
    assert recent.get("huge") is None and len(recent) == 3
