"""TensorBoard and W&B as they are: what is written is read back. And that neither can hurt a run."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig, OmegaConf
from solver_runs import LM_DEBUG

from micro_musicgen.audio.io import write_wav
from micro_musicgen.errors import MicroMusicGenError, MissingExtraError
from micro_musicgen.solvers.reporting import loggers as module
from micro_musicgen.solvers.reporting.loggers import Loggers, build_loggers
from micro_musicgen.solvers.reporting.logging_tensorboard import TensorBoardLogger
from micro_musicgen.solvers.reporting.logging_wandb import WandbLogger
from micro_musicgen.train import run_xp

RATE = 32000


class XP:
    sig = "c0ffee00"


def config(*, tensorboard: bool = False, wandb: bool = False, **of_wandb: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "solver": "musicgen",
            "logging": {"log_tensorboard": tensorboard, "log_wandb": wandb},
            "tensorboard": {"with_media_logging": True, "name": None, "sub_dir": None},
            "wandb": {"with_media_logging": True, "mode": "offline", "project": "p", "name": None, "group": None}
            | of_wandb,
        }
    )


def sine(channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE // 10) / RATE)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


class Fake:
    """A logger that remembers, and does what a test makes it do."""

    name, with_media = "Fake", True

    def __init__(self, trouble: Any = None) -> None:
        self.trouble = trouble
        self.calls: list[tuple[Any, ...]] = []

    def start(self, config: Any, update: int) -> None:
        self.calls.append(("start", update))

    def metrics(self, stage: str, values: Any, *, epoch: int, update: int) -> None:
        if self.trouble is not None:
            self.trouble()
        self.calls.append((stage, dict(values), epoch, update))

    def audio(self, name: str, wav: Any, sample_rate: int, *, epoch: int, update: int) -> None:
        self.calls.append((name, wav.shape, sample_rate))

    def image(self, name: str, path: Path, *, epoch: int, update: int) -> None:
        self.calls.append((name, path))

    def text(self, name: str, text: str, *, epoch: int, update: int) -> None:
        self.calls.append((name, text))

    def close(self) -> None:
        self.calls.append(("close",))


def feed(loggers: Loggers, epochs: int = 3) -> None:
    loggers.start({"lr": 0.1}, 0)
    for epoch in range(1, epochs + 1):
        loggers.metrics("train", {"ce": 5.0 - epoch}, epoch=epoch, update=4 * epoch)
    loggers.close()


# What every logger has in common.


def test_by_default_there_is_none_and_every_call_does_nothing(tmp_path: Path) -> None:
    loggers = build_loggers(config(), XP, tmp_path)
    assert len(loggers) == 0
    feed(loggers)
    loggers.clips([tmp_path / "missing.wav"], epoch=1, update=1)
    assert not list(tmp_path.iterdir())


def test_other_ranks_log_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.flashy.distrib, "rank", lambda: 1)
    assert len(build_loggers(config(tensorboard=True, wandb=True), XP, tmp_path)) == 0


def test_only_numbers_are_handed_on_nan_and_scalar_tensors_included() -> None:
    fake = Fake()
    loggers = Loggers([fake])
    loggers.start({}, 7)
    values = {"ce": torch.tensor(2.5), "nan": float("nan"), "n": 3, "none": None, "text": "x", "more": torch.ones(2)}
    loggers.metrics("valid", values, epoch=2, update=8)
    loggers.metrics("generate", {}, epoch=2, update=8)
    loggers.close()
    (start, (stage, got, epoch, update), close) = fake.calls
    assert (start, close) == (("start", 7), ("close",))
    assert (stage, epoch, update) == ("valid", 2, 8) and list(got) == ["ce", "nan", "n"] and got["ce"] == 2.5


def test_clips_have_one_name_over_all_epochs_and_a_bad_file_switches_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("0002_0.wav", "original_1.wav")
    for name in names:
        write_wav(tmp_path / name, sine(), RATE)
    fake, deaf = Fake(), Fake()
    deaf.with_media = False
    loggers = Loggers([fake, deaf])
    loggers.start({}, 0)
    loggers.clips([tmp_path / name for name in names], epoch=2, update=8)
    loggers.clips([tmp_path / "missing.wav"], epoch=2, update=8)
    loggers.image("loss", tmp_path / "loss.png", epoch=2, update=8)
    loggers.close()
    assert fake.calls[1:3] == [("samples/0", (1, 3200), RATE), ("samples/original_1", (1, 3200), RATE)]
    assert deaf.calls == [("start", 0), ("close",)]
    assert len(caplog.messages) == 1 and "Fake failed and is switched off" in caplog.messages[0]


def test_one_that_raises_is_told_once_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("disk\nfull")

    bad, good = Fake(fail), Fake()
    feed(Loggers([bad, good]))
    assert [call[0] for call in bad.calls] == ["start", "close"]
    assert [call[0] for call in good.calls] == ["start", "train", "train", "train", "close"]
    assert caplog.messages == ["Fake failed and is switched off, training goes on: disk full"]


def test_one_that_hangs_costs_the_run_no_time_but_a_limited_wait_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()
    loggers = Loggers([Fake(released.wait)], close_timeout_s=0.2)
    began = time.monotonic()
    loggers.start({}, 0)
    for update in range(2 * module.QUEUE_LENGTH):
        loggers.metrics("train", {"ce": 1.0}, epoch=1, update=update)
    assert time.monotonic() - began < 0.5
    loggers.close()
    assert time.monotonic() - began < 1.5
    released.set()
    assert "cannot keep up" in caplog.messages[0] and "did not finish in time" in caplog.messages[1]
    assert len(caplog.messages) == 2


def test_what_is_in_a_full_queue_is_written_before_the_end() -> None:
    slow = Fake(lambda: time.sleep(0.001))
    loggers = Loggers([slow])
    loggers.start({}, 0)
    for update in range(2 * module.QUEUE_LENGTH):
        loggers.metrics("train", {"ce": 1.0}, epoch=1, update=update)
    loggers.close()
    assert len(slow.calls) >= module.QUEUE_LENGTH and slow.calls[-1] == ("close",)


@pytest.mark.parametrize("library", ["tensorboard", "wandb"])
def test_a_missing_library_is_one_line_that_names_the_extra(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError) as caught:
        build_loggers(config(**{library: True}), XP, tmp_path)
    message = str(caught.value)
    assert caught.value.exit_code == 2 and "\n" not in message
    assert f"logging.log_{library}=true needs {library}" in message and f"micro-musicgen[{library}]" in message


def test_a_folder_called_like_the_library_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_library").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError):
        module.need("a_library", attribute="init", switch="logging.x", extra="x")


# TensorBoard.


def read_events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"audio": 0, "images": 0, "scalars": 0})
    return events.Reload()


def points(events: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.fixture
def tensorboard(tmp_path: Path) -> Loggers:
    pytest.importorskip("tensorboard")
    return build_loggers(config(tensorboard=True), XP, tmp_path)


def test_tensorboard_holds_scalars_audio_image_and_config(tensorboard: Loggers, tmp_path: Path) -> None:
    from PIL import Image

    wav = sine(channels=2)
    soundfile.write(tmp_path / "0001_0.wav", wav.T, RATE, subtype="PCM_16")
    Image.new("RGB", (8, 6), (255, 0, 0)).save(tmp_path / "loss.png")
    tensorboard.start({"optim": {"lr": 0.25}}, 0)
    for epoch, ce in ((1, 5.0), (2, 4.5)):
        tensorboard.metrics("train", {"ce": ce, "ce_q1": ce - 1}, epoch=epoch, update=4 * epoch)
        tensorboard.metrics("valid", {"ce": ce + 1}, epoch=epoch, update=4 * epoch)
    tensorboard.clips([tmp_path / "0001_0.wav"], epoch=2, update=8)
    tensorboard.image("loss", tmp_path / "loss.png", epoch=2, update=8)
    tensorboard.close()

    events = read_events(tmp_path / "tensorboard")
    assert points(events, "train/ce") == [(4, 5.0), (8, 4.5)] and points(events, "valid/ce") == [(4, 6.0), (8, 5.5)]
    assert points(events, "train/epoch") == [(4, 1.0), (8, 2.0)]
    (clip,) = events.Audio("samples/0")
    heard, rate = soundfile.read(io.BytesIO(clip.encoded_audio_string))
    assert (clip.step, rate, heard.shape) == (8, RATE, (3200,))
    assert np.abs(heard - wav[0]).max() < 1e-4
    (image,) = events.Images("loss")
    assert (image.width, image.height) == (8, 6)
    (text,) = events.Tensors("config/text_summary")
    assert b"lr: 0.25" in text.tensor_proto.string_val[0]


def test_tensorboard_goes_on_after_a_kill_without_a_point_twice(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    for start, updates, ce in ((0, (4, 8, 12), 1.0), (8, (12, 16), 2.0)):  # killed after 12, its checkpoint is of 8
        loggers = build_loggers(config(tensorboard=True), XP, tmp_path)
        loggers.start({}, start)
        for update in updates:
            loggers.metrics("train", {"ce": ce}, epoch=update // 4, update=update)
        loggers.close()
        time.sleep(1.1)  # files are named, and read in the order of, whole seconds
    events = read_events(tmp_path / "tensorboard")
    assert points(events, "train/ce") == [(4, 1.0), (8, 1.0), (12, 2.0), (16, 2.0)]


def test_tensorboard_puts_events_where_it_is_told(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    section = OmegaConf.create({"with_media_logging": False, "name": "b", "sub_dir": "a"})
    assert TensorBoardLogger(section, tmp_path).folder == tmp_path / "tensorboard" / "a" / "b"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_folder_that_cannot_be_written_to_any_more_ends_the_log_and_not_the_run(
    tensorboard: Loggers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensorboard.start({}, 0)
    tensorboard.metrics("train", {"ce": 1.0}, epoch=1, update=4)
    time.sleep(0.2)
    shutil.rmtree(tmp_path / "tensorboard")
    (tmp_path / "tensorboard").write_text("a file where the folder was: root may write everywhere else")
    for epoch in range(2, 6):
        tensorboard.metrics("train", {"ce": 1.0}, epoch=epoch, update=4 * epoch)
        time.sleep(0.05)
    tensorboard.close()
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("TensorBoard failed and is switched off")


def test_a_folder_that_cannot_be_written_to_at_the_start_is_an_error(tensorboard: Loggers, tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(MicroMusicGenError, match="cannot write to"):
        tensorboard.start({}, 0)


# W&B.


@pytest.fixture
def wandb_section() -> Iterator[DictConfig]:
    pytest.importorskip("wandb")
    yield config().wandb


def test_wandb_id_is_the_signature_and_stays_with_the_folder(wandb_section: DictConfig, tmp_path: Path) -> None:
    ids = []
    for folder in (tmp_path / "run", tmp_path / "run", tmp_path / "started_anew"):
        ids.append(WandbLogger(wandb_section, folder, signature="c0ffee00", solver="musicgen").run_id)
    assert ids[0] == ids[1] != ids[2] and all(each.startswith("c0ffee00-") for each in ids)


def test_wandb_modes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(MicroMusicGenError, match=r"wandb.mode 'of'; known: offline, online, disabled"):
        build_loggers(config(wandb=True, mode="of"), XP, tmp_path)


def test_wandb_online_needs_a_login(wandb_section: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(MicroMusicGenError, match="`wandb login`, or wandb.mode=offline"):
        build_loggers(config(wandb=True, mode="online"), XP, tmp_path)


SCRIPT = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO)
from omegaconf import OmegaConf
from micro_musicgen.solvers.reporting import logging_wandb
from micro_musicgen.solvers.reporting.loggers import build_loggers
logging_wandb.INIT_TIMEOUT_S = 3.0
class XP: sig = "c0ffee00"
folder, start, cfg = Path(sys.argv[1]), int(sys.argv[2]), OmegaConf.load(sys.argv[3])
loggers = build_loggers(cfg, XP, folder)
loggers.start({"optim": {"lr": 0.25}}, start)
for update in (start + 4, start + 8):
    loggers.metrics("train", {"ce": 5.0 - update / 8, "nan": float("nan")}, epoch=update // 4, update=update)
    loggers.metrics("valid", {"ce": 6.0}, epoch=update // 4, update=update)
    loggers.clips([folder / "0001_0.wav"], epoch=update // 4, update=update)
loggers.close()
print("the run is over")
"""


def run_wandb(folder: Path, start: int, cfg: DictConfig, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs SCRIPT in a process that has no network, no login and no home folder."""
    folder.mkdir(exist_ok=True)
    write_wav(folder / "0001_0.wav", sine(), RATE)
    (folder / "cfg.yaml").write_text(OmegaConf.to_yaml(cfg))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "NETRC"))}
    dead = "http://127.0.0.1:9"
    env = {**kept, "HOME": str(folder), "HTTPS_PROXY": dead, "HTTP_PROXY": dead, "NO_PROXY": "", **environment}
    isolated = ["unshare", "-n"] if _can_unshare() else []
    command = [*isolated, sys.executable, "-c", SCRIPT, str(folder), str(start), str(folder / "cfg.yaml")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def _can_unshare() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "-n", "true"]).returncode == 0


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: 7 bytes, then LevelDB's log format with a protobuf message a record."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, parts, block = path.read_bytes(), 7, b"", 32768
    while at + 7 <= len(raw):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        parts += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for record in wandb_records(path):
        if record.WhichOneof("record_type") == "history":
            items = ((item.key or "/".join(item.nested_key), item.value_json) for item in record.history.item)
            rows.append({key: json.loads(value) for key, value in items})
    return rows


@pytest.mark.slow
def test_wandb_offline_keeps_metrics_and_audio_and_goes_on_under_the_same_id(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder = tmp_path / "run"
    for start in (0, 8):
        done = run_wandb(folder, start, config(wandb=True))
        assert done.returncode == 0 and "the run is over" in done.stdout, done.stderr
        assert "wandb sync" in done.stderr and "Traceback" not in done.stderr
        time.sleep(1.1)  # folders are named by the second
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    identity = (folder / "wandb_id").read_text().strip()
    assert len(runs) == 2 and all(run.name.endswith(identity) for run in runs)
    rows = [row for run in runs for row in wandb_rows(run / f"run-{identity}.wandb")]
    assert [(row["_step"], row["train/ce"], row["valid/ce"], row["epoch"]) for row in rows] == [
        (4, 4.5, 6.0, 1),
        (8, 4.0, 6.0, 2),
        (12, 3.5, 6.0, 3),
        (16, 3.0, 6.0, 4),
    ]
    clips = [runs[index // 2] / "files" / row["samples/0/path"] for index, row in enumerate(rows)]
    heard, rate = soundfile.read(clips[0])
    assert rate == RATE and np.abs(heard - sine()[0]).max() < 1e-4 and all(clip.is_file() for clip in clips)


@pytest.mark.slow
def test_wandb_online_without_a_network_is_kept_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = run_wandb(tmp_path / "run", 0, config(wandb=True, mode="online"), WANDB_API_KEY="0" * 40)
    assert done.returncode == 0 and "the run is over" in done.stdout, done.stderr
    assert "W&B does not answer; this run is logged offline" in done.stderr
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert [row["_step"] for row in wandb_rows(path)] == [4, 8]


# In a run.


def test_a_run_logs_its_epochs_and_clips_and_resumes_without_doubles(toy_home: Path) -> None:
    argv = [*LM_DEBUG, "logging.log_tensorboard=true", "tensorboard.with_media_logging=true", "seed=31"]
    folder = run_xp(argv)
    run_xp(argv)  # finished: adds nothing
    history = json.loads((folder / "history.json").read_text())
    events = read_events(folder / "tensorboard")
    for stage in ("train", "valid"):
        expected = [(4 * (n + 1), pytest.approx(epoch[stage]["ce"])) for n, epoch in enumerate(history)]
        assert points(events, f"{stage}/ce") == expected
    assert [event.step for event in events.Audio("samples/0")] == [4, 8]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith("wandb")) == []


def test_a_run_that_asks_for_what_is_not_installed_stops_before_it_starts(
    toy_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="wandb"):
        run_xp([*LM_DEBUG, "logging.log_wandb=true", "seed=32"])


def test_a_run_survives_a_logger_that_fails_at_every_call(toy_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no quota")

    for name in ("metrics", "audio", "image", "text", "close"):
        monkeypatch.setattr(TensorBoardLogger, name, fail)
    monkeypatch.setattr(TensorBoardLogger, "start", lambda *_: None)
    folder = run_xp([*LM_DEBUG, "logging.log_tensorboard=true", "seed=33"])
    assert len(json.loads((folder / "history.json").read_text())) == 2
    log = (folder / "solver.log.0").read_text()
    assert log.count("no quota") == 1
