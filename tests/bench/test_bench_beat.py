"""bench/beat.py: its plans are experiments, what is trained is found again, parts are known. No training here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import beat  # noqa: E402
import beat_home as homes  # noqa: E402
import diffusion_models  # noqa: E402
from common import wanted_parts  # noqa: E402
from diffusion_home import Home  # noqa: E402


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home that has a data set by name, and nothing else."""
    from micro_musicgen import paths

    found = Home(tmp_path / "data")
    monkeypatch.setenv(paths.HOME_VARIABLE, str(found.data))
    (found.data / "dset" / "audio").mkdir(parents=True)
    lines = "\n".join(f"  {key}: nowhere" for key in ("train", "valid", "evaluate", "generate"))
    text = f"# @package _global_\ndatasource:\n  max_sample_rate: 32000\n  max_channels: 1\n{lines}\n"
    (found.data / "dset" / "audio" / f"{homes.DATA}.yaml").write_text(text)
    return found


def test_a_home_is_known_by_its_sounds(tmp_path: Path) -> None:
    full = homes.FULL
    assert replace(full, threads=3, lm_minutes=1).key == full.key != replace(full, minutes=1).key
    assert homes.home_of(tmp_path, full).data != homes.home_of(tmp_path, homes.QUICK).data
    assert homes.home_of(tmp_path, full, tmp_path / "mine").data == tmp_path / "mine"


def test_all_that_is_trained_is_an_experiment_in_beat_time(home: Home) -> None:
    from micro_musicgen.train import main

    argvs = [homes.codec_argv(homes.FULL)]
    argvs += [homes.beat_codec_argv(homes.FULL, model) for model in homes.BEAT_CODECS.values()]
    argvs.append(homes.lm_argv(homes.FULL, "//sig/0", minutes=1, card=256, num_codebooks=4, bars=4))
    found = [main.experiment(argv) for argv in argvs]
    assert len({each.sig for each in found}) == len(argvs)
    assert all(each.cfg.dset.time == "beats" for each in found)
    assert found[-1].cfg.dataset.segment_bars == 4 and found[-1].cfg.transformer_lm.n_q == 4


def test_what_is_trained_is_found_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def run(argv: list[str], timeout_s: float) -> float:
        data, overrides = json.loads(argv[-1])
        note = diffusion_models.note_of(Home(Path(data)), overrides)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"signature": f"{len(started):08d}"}))
        started.append(overrides)
        return 0.0

    monkeypatch.setattr(diffusion_models, "run_process", run)
    monkeypatch.setattr(homes, "run_process", lambda *_, **__: pytest.fail("the data set is there"))
    models = beat.train(home, homes.FULL, ("loops", "rate"))
    assert set(models.codecs) == {homes.ENCODEC, *homes.BEAT_CODECS} and set(models.lms) == {homes.LOOPS, homes.BEAT_LM}
    assert f"compression_model_checkpoint={models.codecs[homes.ENCODEC]}" in started[len(models.codecs)]
    assert beat.train(home, replace(homes.FULL, threads=2), ("loops", "rate")) == models
    assert len(started) == len(models.codecs) + len(models.lms)
    assert beat.train(home, homes.FULL, ("backbone",)) == homes.Models(
        {homes.ENCODEC: models.codecs[homes.ENCODEC]}, {}
    )
    assert beat.train(home, homes.FULL, ("audio", "tempo")) == homes.Models({}, {})


def test_parts_are_known() -> None:
    assert wanted_parts("audio,rate", beat.PARTS) == ("audio", "rate")
    assert wanted_parts(None, beat.PARTS) == beat.PARTS
    assert all(callable(getattr(beat.Bench, part)) for part in beat.PARTS)
    with pytest.raises(SystemExit):
        wanted_parts("audio,song", beat.PARTS)


@pytest.mark.parametrize("script", ["beat.py", "beat_home.py"])
def test_help_is_there_and_loads_no_torch(script: str) -> None:
    code = f"import sys, runpy; sys.argv = ['x', '--help']; sys.path.insert(0, {str(BENCH)!r})\n"
    code += f"try: runpy.run_path({str(BENCH / script)!r}, run_name='__main__')\n"
    code += "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
