"""The grid of Model A and Model B: equal parameters, as counted and as built, and configs that compose."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dora.conf import SlurmConfig
from dora.explore import Herd, Launcher
from fixtures_models import write_codec_run
from omegaconf import DictConfig
from tiny_text import make_tiny_t5, words_of

from micro_musicgen import paths, storage
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.scales import SCALES
from micro_musicgen.train import main

lite_ab: Any = import_module("micro_musicgen.grids.lite_ab")


class Listing:
    """Stands where Dora's shepherd does and composes nothing."""

    main = main

    def get_sheep_from_argv(self, argv: list[str]) -> Any:
        """One run."""
        return SimpleNamespace(xp=SimpleNamespace(sig=" ".join(argv), argv=argv))


@pytest.fixture
def configs(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, DictConfig]:
    """The grid's runs as Dora would compose them, on a data set and a codec of 4 x 64 codes."""
    for variable in (lite_ab._choices.DATASET_VARIABLE, lite_ab._choices.CODEC_VARIABLE, lite_ab.SCALE_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    pytest.importorskip("transformers")
    monkeypatch.setenv(lite_ab.T5_VARIABLE, str(make_tiny_t5(tmp_path / "t5", words_of("a b"))))
    monkeypatch.setenv(lite_ab.STEPS_VARIABLE, "100")
    keys = "".join(f"  {key}: /nowhere/{key}\n" for key in ("train", "valid", "evaluate", "generate"))
    text = f"# @package _global_\ndatasource:\n  max_sample_rate: 32000\n  max_channels: 1\n{keys}"
    storage.write_text(paths.dset_dir() / "audio" / "told.yaml", text)
    facts = {"solver": "compression", "dataset": "told", "updates_done": 5, "total_updates": 5}
    summary = {**facts, "cardinality": 64, "num_codebooks": 4}
    storage.write_json(write_codec_run("c0dec000") / "summary.json", summary)
    main.dora.dir = paths.runs_dir()
    herd = Herd()
    lite_ab.explorer(Launcher(Listing(), SlurmConfig(), herd))
    found = [main.experiment(sheep.xp.argv).cfg for sheep in herd.sheeps.values()]
    return dict(zip(lite_ab.ROWS, found, strict=True))


@pytest.mark.parametrize("scale", sorted(SCALES))
@pytest.mark.parametrize(("card", "num_codebooks"), [(2048, 4), (256, 4), (512, 2)])
def test_parameters_agree_within_two_percent(scale: str, card: int, num_codebooks: int) -> None:
    shapes = lite_ab.shapes(scale, card=card, num_codebooks=num_codebooks)
    counts = {name: shape.num_parameters for name, shape in shapes.items()}
    assert set(counts) == set(lite_ab.ROWS)
    assert max(counts.values()) <= 1.02 * min(counts.values()), counts
    widths = [shape.lm.ffn_dim / shape.lm.dim for shape in shapes.values()]
    assert all(2 <= width <= 8 for width in widths), "no row is starved for the others' sake"


def test_what_is_counted_is_what_is_built(configs: dict[str, DictConfig]) -> None:
    """Oracle: the modules themselves. All rows have the text's projection, which the count leaves out."""
    from micro_musicgen.lm.builder import build_lm, lm_config

    shapes = lite_ab.shapes("nano", card=64, num_codebooks=4)
    for name, cfg in configs.items():
        model = build_lm(lm_config(cfg), window_s=lite_ab.SEGMENT_S)
        projection = model.condition_provider.conditioners["description"].projection.weight.numel()
        built = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert built - projection == shapes[name].num_parameters, name


def test_rows_differ_by_model_alone(configs: dict[str, DictConfig]) -> None:
    alike = {
        (
            cfg.optim.lr,
            cfg.optim.epochs * cfg.optim.updates_per_epoch,
            cfg.optim.effective_batch,
            cfg.dataset.segment_duration,
            cfg.schedule.lr_scheduler,
            cfg.classifier_free_guidance.training_dropout,
        )
        for cfg in configs.values()
    }
    assert len(alike) == 1 and next(iter(alike))[:3] == (1e-3, 100, 32)
    patterns = {name: cfg.codebooks_pattern.modeling for name, cfg in configs.items()}
    assert patterns == {"text_prefix": "unroll", "text_audio": "delay", "text_cross": "delay"}
    facts = {name: lite_ab.explorer.facts(cfg) for name, cfg in configs.items()}
    assert facts["text_audio"]["conditions"] == "description+audio_prompt"
    assert max(float(fact["M"]) for fact in facts.values()) < 1.02 * min(float(fact["M"]) for fact in facts.values())


def test_the_table_says_what_conditions_save() -> None:
    sheep = SimpleNamespace(xp=SimpleNamespace(cfg=SimpleNamespace(compression_model_checkpoint="//sig/none")))
    found = lite_ab.explorer.values(sheep, [{"evaluate": {"ce": 3.0, "ce_untold": 3.5}}])
    assert found["Conditions"] == {"untold": 3.5, "told": 0.5}
    assert lite_ab.explorer.values(sheep, [{"train": {"ce": 3.0}}])["Conditions"] == {"untold": None, "told": None}


def test_steps_are_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("many", "5"):
        monkeypatch.setenv(lite_ab.STEPS_VARIABLE, given)
        with pytest.raises(MicroMusicGenError, match=f"STEPS={given}"):
            lite_ab._steps()


def test_patterns_fit_any_number_of_codebooks() -> None:
    assert lite_ab.patterns(2) == {
        "codebooks_pattern.delay.delays": [0, 1],
        "codebooks_pattern.unroll.flattening": [0, 1],
        "codebooks_pattern.unroll.delays": [0, 0],
    }
