"""Tables of grids, from histories whose numbers are known."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import treetable
from omegaconf import OmegaConf

from micro_musicgen import paths
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.explorers import CodecExplorer, LMExplorer, RunExplorer, best, by_level, frechet, newest


def lm_epoch(ce: float, **train: float) -> dict[str, dict[str, float]]:
    levels = {f"ce_q{k}": ce + 0.1 * k for k in range(1, 11)}
    return {"train": {"ce": ce - 0.5, "duration": 4.0, **train}, "valid": {"ce": ce, **levels, "duration": 0.1}}


def a_sheep(folder: Path, codec: str = "//sig/c0dec000", **summary: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    cfg = {
        "sample_rate": 32000,
        "compression_model_checkpoint": codec,
        "transformer_lm": {"dim": 128, "num_layers": 4},
        "optim": {"lr": 3e-4},
        "seanet": {"n_filters": 16, "ratios": [4, 4, 5, 8]},
        "rvq": {"n_q": 4, "bins": 256},
    }
    return SimpleNamespace(xp=SimpleNamespace(folder=folder, cfg=OmegaConf.create(cfg)))


def printed(explorer: RunExplorer, lines: list[dict[str, Any]]) -> list[str]:
    """What Dora would print, from its own way of building the table."""
    meta = treetable.group("Meta", explorer.get_grid_meta())
    table = treetable.table(shorten=True, groups=[meta, *explorer.get_grid_metrics()])
    return treetable.treetable(lines, table).splitlines()


def test_lm_line_from_a_known_history(home: Path) -> None:
    (paths.xp_dir("c0dec000")).mkdir(parents=True)
    codec = [{"valid": {"usage_q1": 0.5, "usage_q2": 1.0}}]
    (paths.xp_dir("c0dec000") / "history.json").write_text(json.dumps(codec))
    sheep = a_sheep(home / "run", updates_done=30, total_updates=100, epochs_done=3)
    history = [lm_epoch(3.0), lm_epoch(2.0), lm_epoch(2.5, steps_per_s=7.0, peak_memory_mb=812.4)]
    history[1]["evaluate"] = {"frechet": 19.7}
    line = LMExplorer(lambda launcher: None).process_sheep(sheep, history)
    assert line["Model"] == {"size": "128x4", "lr": "0.0003"}
    assert line["Run"] == {"epoch": 3, "steps": "30/100", "per s": 7.0, "MB": 812.4}
    assert line["Train"] == {"ce": 2.0}
    assert line["Valid"]["ppl"] == pytest.approx(math.exp(2.5))
    assert (line["Valid"]["ce"], line["Valid"]["best"], line["Valid"]["frechet"]) == (2.5, "2.000 @2", 19.7)
    assert line["Valid"]["by codebook"] == "2.60 2.70 2.80 2.90 3.00 3.10 3.20 3.30 3.40 3.50"
    assert line["Codec"] == {"usage": "0.50 1.00"}


def test_speed_is_derived_where_the_run_does_not_say_it(home: Path) -> None:
    sheep = a_sheep(home / "run", updates_done=30, total_updates=100, epochs_done=3)
    line = LMExplorer(lambda launcher: None).process_sheep(sheep, [lm_epoch(3.0), lm_epoch(2.0), lm_epoch(2.5)])
    assert line["Run"]["per s"] == 10 / 4.0


def test_a_trimmed_history_shows_its_own_steps(home: Path) -> None:
    sheep = a_sheep(home / "run", updates_done=30, total_updates=100, epochs_done=3)
    line = LMExplorer(lambda launcher: None).process_sheep(sheep, [lm_epoch(3.0)])
    assert (line["Run"]["epoch"], line["Run"]["steps"], line["Valid"]["best"]) == (1, "10/100", "3.000 @1")


def test_codec_line_shows_each_level(home: Path) -> None:
    valid = {"mel": 0.51, "si_sdr": 3.0, "usage_q1": 0.25, "usage_q2": 1.0, "entropy_q1": 0.125, "entropy_q2": 0.9}
    line = CodecExplorer(lambda launcher: None).process_sheep(
        a_sheep(home / "run"), [{"train": {"loss": 2.0}, "valid": valid}]
    )
    # 4 codebooks x 8 bits x 50 frames a second.
    assert line["Model"] == {"filters": 16, "codes": "4x256", "kbit/s": "1.60"}
    assert line["Codes"] == {"usage": "0.25 1.00", "entropy": "0.12 0.90"}
    assert (line["Valid"]["mel"], line["Valid"]["best"], line["Train"]["loss"]) == (0.51, "0.510 @1", 2.0)


@pytest.mark.parametrize("explorer", [LMExplorer, CodecExplorer])
def test_a_table_of_runs_with_and_without_history_prints(explorer: type[RunExplorer], home: Path) -> None:
    table = explorer(lambda launcher: None)
    none = table.process_sheep(a_sheep(home / "a"), [])
    odd = table.process_sheep(a_sheep(home / "b", codec="//pretrained/facebook/encodec_32khz"), [{}, {"train": {}}])
    full = table.process_sheep(a_sheep(home / "c"), [lm_epoch(2.0)])
    metas = [{"Meta": {"index": i, "name": "lr=1", "state": "N/A", "sig": "0" * 8, "sid": ""}} for i in range(3)]
    lines = printed(table, [{**meta, **line} for meta, line in zip(metas, (none, odd, full), strict=True)])
    assert set(none) == {"Model"} and len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert re.search(r"epoch +steps +per s", lines[1]), "headers are written out"


def test_an_unreadable_summary_is_no_summary(home: Path) -> None:
    sheep = a_sheep(home / "run")
    (home / "run" / "summary.json").write_text('{"updates_done": 3')
    line = LMExplorer(lambda launcher: None).process_sheep(sheep, [lm_epoch(3.0)])
    assert line["Run"]["steps"] is None and line["Run"]["per s"] is None


def test_cells() -> None:
    history = [
        {"valid": {"ce": 3.0, "ce_q1": 1.0}},
        {"train": {}},
        {"valid": {"ce": 4.0}, "evaluate": {"fad_vggish": 2}},
    ]
    assert newest(history, "valid", "ce") == 4.0 and newest(history, "train", "ce") is None
    assert best(history, "valid", "ce") == "3.000 @1" and best(history, "valid", "mel") is None
    assert by_level(history, "valid", "ce_q", ".2f") is None and by_level(history[:1], "valid", "ce_q", ".1f") == "1.0"
    assert frechet(history) == 2.0 and frechet(history[:2]) is None


def test_a_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def explore(launcher: Any) -> None:
        raise MicroMusicGenError("no data set; make one")

    with pytest.raises(SystemExit) as exit:
        LMExplorer(explore)(None)
    assert exit.value.code == 2 and capsys.readouterr().err == "error: no data set; make one\n"
