"""Runs the main job from sounds to clips in a folder of its own, and writes the page that shows it.

Everything lies below `out`: sounds, data home, release, clips, numbers.json, index.html. Running it again resumes what
was cut off.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen import paths, references, storage
from micro_musicgen.demo.figures import save_spectrogram
from micro_musicgen.demo.page import PageClip, render, table
from micro_musicgen.errors import MicroMusicGenError

if TYPE_CHECKING:
    from micro_musicgen.data.report import PrepareReport
    from micro_musicgen.solvers.reporting.progress import Reporter

DATASET = "demo"
SOUND_MINUTES = 6.0
TRAIN_MINUTES = 5.0
"""Together with all else under eight minutes on two cores; `--minutes` changes it."""
SCALE = "nano"
OVERRIDES: tuple[str, ...] = ("generate.every=never",)
"""Hydra overrides of both runs: in minutes there is no time for clips on the way."""
LM_OVERRIDES = ("optim.lr=2e-3",)
NUM_CLIPS = 4
CLIP_S = 8.0
SHOWN_SOUNDS = 4
ROUND_TRIPS = "round-trips"

Say = Callable[[str], None]


@dataclass
class Stopwatch:
    """Wall time of each stage, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, stage: str, work: Callable[[], Any]) -> Any:
        """Gives what `work` gives, noting how long it took."""
        began = time.monotonic()
        result = work()
        self.seconds[stage] = round(time.monotonic() - began, 1)
        return result


def run_demo(out: Path, *, folder: Path | None, minutes: float | None, seed: int, reporter: Reporter, say: Say) -> Path:
    """Gives the path of the page after making everything it shows.

    folder: the user's own sounds; None synthesises breakbeats. minutes: training time, codec and LM together.

    Raises:
        MicroMusicGenError: no usable sound in `folder`, or `out` can't be written.
    """
    from micro_musicgen import training

    out = storage.ensure_writable(out).resolve()
    os.environ[paths.HOME_VARIABLE] = str(out / "home")
    watch = Stopwatch()
    sounds = folder or out / "sounds"
    if folder is None:
        say(f"making {SOUND_MINUTES:g} minutes of breakbeats in {sounds}")
        watch.run("synthesise", lambda: _synthesise(sounds, seed))
    elif not folder.is_dir():
        raise MicroMusicGenError(f"{folder} is not a folder; name one that holds audio files")
    report = watch.run("prepare", lambda: _prepare(sounds, seed))
    for line in report.summary_lines():
        say(line)
    request = training.TrainingRequest(
        dataset=DATASET,
        minutes=minutes or TRAIN_MINUTES,
        scale=SCALE,
        seed=2036 + seed,
        overrides=OVERRIDES,
        lm_overrides=LM_OVERRIDES,
    )
    say(f"training a codec, then a {SCALE} language model: about {request.minutes:g} minutes")
    run = watch.run("train", lambda: _train_once(request, reporter))
    clips = watch.run("export and generate", lambda: _play(run, out, seed))
    say("measuring")
    from micro_musicgen.demo.numbers import measure

    numbers = watch.run("measure", lambda: measure(run, out / "release", out / ROUND_TRIPS, seed=seed))
    numbers["seconds"] = watch.seconds
    storage.write_json(out / "numbers.json", numbers)
    page = _write_page(out, run, clips, numbers, own_sounds=folder is not None)
    for line in _spoken(numbers):
        say(line)
    return page


def _synthesise(folder: Path, seed: int) -> None:
    from micro_musicgen.audio.synth import write_breaks

    write_breaks(folder, seed=seed, minutes=SOUND_MINUTES)


def _prepare(folder: Path, seed: int) -> PrepareReport:
    from micro_musicgen.data.prepare import prepare

    return prepare(folder, DATASET, seed=seed, valid_fraction=0.15, overwrite=True)


def _train_once(request: Any, reporter: Reporter) -> Path:
    """Gives the LM's run folder; a run that is complete already is taken as it is, not extended."""
    from micro_musicgen import training

    finished = references.newest_run(request.dataset, solver="musicgen")
    if finished is not None:
        summary = storage.read_json(finished / "summary.json")
        if summary["updates_done"] >= summary["total_updates"]:
            return finished
    return training.train(request, reporter)


def _play(run: Path, out: Path, seed: int) -> list[Path]:
    from micro_musicgen.engine.clips import ClipRequest, write_clips
    from micro_musicgen.release.export import export

    export(str(run), out / "release", form="micro", name="demo", overwrite=True)
    request = ClipRequest(
        release=str(out / "release"),
        num_clips=NUM_CLIPS,
        out=out / "clips",
        duration_s=CLIP_S,
        seed=seed,
        overwrite=True,
    )
    return list(write_clips(request).files)


def _page_clips(out: Path, wavs: list[Path], kind: str) -> list[PageClip]:
    """Gives players for `wavs`, cut to a clip's length, mono, as WAV files below the page."""
    from micro_musicgen.audio.io import load_mono, write_wav

    clips = []
    for number, source in enumerate(wavs):
        wav = load_mono(source, 32000, duration_s=CLIP_S)
        name = f"{kind}_{number}"
        write_wav(out / "page" / f"{name}.wav", wav, 32000)
        save_spectrogram(wav, 32000, out / "page" / f"{name}.png")
        clips.append(PageClip(source.stem, f"page/{name}.wav", f"page/{name}.png"))
    return clips


def _write_page(out: Path, run: Path, clips: list[Path], numbers: dict[str, Any], *, own_sounds: bool) -> Path:
    from micro_musicgen.data.manifest import read_manifest

    tracks = read_manifest(paths.manifests_dir(DATASET) / "train")
    sounds = [Path(track.path) for track in tracks[:: max(1, len(tracks) // SHOWN_SOUNDS)]][:SHOWN_SOUNDS]
    plots = {}
    (out / "page").mkdir(exist_ok=True)
    for label, folder in (
        ("Language model: cross-entropy", run),
        ("Codec: losses", references.newest_run(DATASET, solver="compression")),
    ):
        if folder is not None and (folder / "loss.png").is_file():
            name = f"page/{'lm' if folder == run else 'codec'}_loss.png"
            shutil.copyfile(folder / "loss.png", out / name)
            plots[label] = name
    origin = "your own folder" if own_sounds else "breakbeats made by this project's synthesiser"
    html = render(
        title="micro_musicgen demo",
        intro=f"A codec and a language model, both trained from scratch on {origin}, on this machine.",
        clip_groups={
            "Generated": _page_clips(out, clips, "generated"),
            "Trained on": _page_clips(out, sounds, "sound"),
            "Through the codec and back (held out)": _page_clips(
                out, sorted((out / ROUND_TRIPS).glob("*.wav")), "codec"
            ),
        },
        plots=plots,
        tables={name: table(rows) for name, rows in _number_rows(numbers).items()},
    )
    page = out / "index.html"
    storage.write_text(page, html)
    return page


def _number_rows(numbers: dict[str, Any]) -> dict[str, list[list[str]]]:
    def row(label: str, values: list[float], form: str = ".2f") -> list[str]:
        return [label, *(format(value, form) for value in values)]

    codec, lm, frechet = numbers["codec"], numbers["lm"], numbers["frechet"]
    return {
        "Codec on held-out sounds": [
            row("log-mel distance, untrained", [codec["mel_distance_untrained"]]),
            row("log-mel distance, trained", [codec["mel_distance"]]),
            row("share of codes used, per level", codec["usage"]),
            row("entropy / ln(card), per level", codec["entropy_ratio"]),
        ],
        "Language model on held-out sounds, per codebook (nat)": [
            row("entropy of the codes", lm["unigram_entropy"]),
            row("cross-entropy of the model", lm["cross_entropy"]),
        ],
        f"Frechet distance to held-out sounds ({frechet['num_frames']} codec latents each)": [
            row("generated clips", [frechet["generated"]]),
            row("random codes", [frechet["random_codes"]]),
            row("other real sounds", [frechet["real_train"]]),
        ],
        "Sizes": [[key.replace("_", " "), f"{value:,}"] for key, value in numbers["sizes"].items()],
        "Seconds": [row(stage, [seconds], ".1f") for stage, seconds in numbers["seconds"].items()],
    }


def _spoken(numbers: dict[str, Any]) -> list[str]:
    return [f"{name}: " + "; ".join(" ".join(r) for r in rows) for name, rows in _number_rows(numbers).items()]
