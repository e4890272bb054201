"""docs/diffusion.md: what it tells a stranger to type works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from micro_musicgen import paths
from micro_musicgen.diffusion.builder import build_diffusion
from micro_musicgen.diffusion.denoiser import Told

DOC = Path(__file__).resolve().parents[2] / "docs" / "diffusion.md"


def test_the_denoiser_in_the_docs_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = DOC.read_text(encoding="utf-8")
    code = next(part for part in text.split("```python\n")[1:] if "denoisers.register" in part).split("```")[0]
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "plain_conv.py").write_text(code)
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    section = {"num_timesteps": 100, "schedule": "cosine", "objective": "v", "loss_weight": "uniform"}
    section |= {"channels": 3, "condition_channels": 2, "text_channels": 0, "residual": False}
    config = {"diffusion": section, "denoiser": {"name": "plain_conv", "plain_conv": {"width": 8}}}
    model = build_diffusion(config)
    frames = torch.randn(2, 3, 7)
    model.normaliser.fit([frames])
    assert model.condition_normaliser is not None
    model.condition_normaliser.fit([frames[:, :2]])
    loss = model.loss(frames, Told(frames[:, :2]))
    loss.loss.sum().backward()
    assert loss.prediction.shape == frames.shape and not loss.prediction.any()
