"""Text encoders of released models: by their Hub id, or a copy of their folder inside the release.

A conditioner of the kind `text` names its encoder in `conditioners.NAME.text.encoder`. In memory that is a Hub id or a
path on this machine; in a release's config.json a Hub id or `text_encoder`, the folder beside it.
"""

from __future__ import annotations

import copy
import fnmatch
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from micro_musicgen import storage
from micro_musicgen.conditioners.text_encoder import CONFIG_FILE, TOKENIZER_FILES, WEIGHT_FILES
from micro_musicgen.contracts import ReleaseConfig
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.weights import Shapes

FOLDER = "text_encoder"
PARTS = (CONFIG_FILE, *WEIGHT_FILES, *TOKENIZER_FILES)
"""What is taken of an encoder's folder, as patterns; anything else stays behind."""
FILES = tuple(f"{FOLDER}/{part}" for part in PARTS)
"""The same by their place in a release."""


def with_widths(lm: Mapping[str, Any], shapes: Shapes) -> Mapping[str, Any]:
    """Gives an LM config that says how wide each text encoder is, as the model's weights tell.

    A model can then be built, played without text and described where its encoder is not at hand.
    """

    def add_width(name: str, settings: dict[str, Any]) -> None:
        shape = shapes.get(f"condition_provider.conditioners.{name}.projection.weight")
        if shape is not None and len(shape) == 2 and settings.get("width") is None:
            settings["width"] = shape[1]

    return _changed(lm, add_width)


def placed(config: ReleaseConfig, folder: Path) -> Mapping[str, Any]:
    """Gives the LM config of the release in `folder`, encoders named so that they are found from anywhere.

    Raises:
        MicroMusicGenError: the encoder is neither in the release nor on the Hub, or its files are not those released.
    """

    def place(name: str, settings: dict[str, Any]) -> None:
        encoder = str(settings.get("encoder"))
        if encoder == FOLDER:
            _check_files(folder, config)
            settings["encoder"] = str(folder.resolve() / FOLDER)
        elif encoder.startswith((".", "/", "~")) or "\\" in encoder or encoder.count("/") > 1:
            raise MicroMusicGenError(
                f"{folder}: config.json names the text encoder {encoder!r}; a release holds one or names a Hub id"
            )

    return _changed(config.lm, place)


def _check_files(folder: Path, config: ReleaseConfig) -> None:
    listed = {name for name in config.hashes if name.startswith(f"{FOLDER}/")}
    if f"{FOLDER}/{CONFIG_FILE}" not in listed:
        raise MicroMusicGenError(f"{folder}: config.json lists no files of {FOLDER}; fetch or export the release again")
    for name in sorted(listed):
        path = folder / name
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in FILES) or name.count("/") != 1:
            raise MicroMusicGenError(
                f"{folder}: {name} is no file of a text encoder; fetch or export the release again"
            )
        if not path.is_file():
            raise MissingFileError(f"{path} is missing; the release is incomplete, fetch or export it again")
        if storage.file_hash(path) != config.hashes[name]:
            raise MicroMusicGenError(
                f"{path} is not the file that was released (its sha256 differs from config.json); fetch or export it "
                "again"
            )
    # What is not listed could still be read by the library that loads the folder.
    stray = sorted(p.name for p in (folder / FOLDER).iterdir() if f"{FOLDER}/{p.name}" not in listed)
    if stray := [name for name in stray if not name.startswith(".")]:
        raise MicroMusicGenError(f"{folder / FOLDER / stray[0]} does not belong to the release; remove it")


def released(lm: Mapping[str, Any], source: str) -> tuple[dict[str, Any], Path | None]:
    """Gives the LM config as a release writes it, and the encoder's folder to be copied, None where the Hub has it.

    Raises:
        MissingFileError: an encoder's folder is gone.
        MicroMusicGenError: the model has two encoders in different folders, or one can't be released.
    """
    folders: dict[Path, str] = {}

    def name_relatively(name: str, settings: dict[str, Any]) -> None:
        encoder = str(settings.get("encoder"))
        path = Path(encoder).expanduser()
        if path.is_dir():
            folders[path.resolve()] = name
            settings["encoder"] = FOLDER
        elif encoder.startswith((".", "/", "~")) or "\\" in encoder or encoder.count("/") > 1:
            raise MissingFileError(
                f"the text encoder {encoder} of {source} is gone; put its folder back, a release holds a copy of it"
            )

    config = _changed(lm, name_relatively)
    if len(folders) > 1:
        raise MicroMusicGenError(
            f"{source} listens through {len(folders)} text encoders in folders of their own; a release holds one"
        )
    return config, next(iter(folders), None)


def copy_encoder(source: Path, release: Path) -> dict[str, str]:
    """Gives the sha256 of each file, by its place in the release, after copying an encoder's folder into it.

    Raises:
        MicroMusicGenError: the folder holds no encoder in safetensors.
    """
    found = {path.name: path for part in PARTS for path in sorted(source.glob(part)) if path.is_file()}
    if CONFIG_FILE not in found or not any(name.endswith(".safetensors") for name in found):
        raise MicroMusicGenError(
            f"{source} holds no text encoder with config.json and model.safetensors; save it with save_pretrained"
        )
    (release / FOLDER).mkdir()
    for name, path in sorted(found.items()):
        shutil.copyfile(path, release / FOLDER / name)
    return {f"{FOLDER}/{name}": storage.file_hash(release / FOLDER / name) for name in sorted(found)}


def described(lm: Mapping[str, Any]) -> dict[str, Any]:
    """Gives plain facts about each condition of a model: what it is, and its encoder with the size of a local one."""
    facts: dict[str, Any] = {}
    for name, each in _conditions(lm):
        facts[name] = each["model"]
        settings = each.get(str(each["model"]))
        for key, value in (settings if isinstance(settings, Mapping) else {}).items():
            if value is not None:
                facts[f"{name}.{key}"] = value
    for name, settings in _text_settings(lm):
        path = Path(str(settings.get("encoder")))
        if path.is_dir():
            size = sum(each.stat().st_size for part in PARTS for each in path.glob(part))
            facts[f"{name}.encoder_megabytes"] = round(size / 1e6, 2)
    return facts


def _changed(lm: Mapping[str, Any], change: Callable[[str, dict[str, Any]], None]) -> dict[str, Any]:
    """Gives a copy of an LM config after `change(name, settings)` of every text conditioner of this project."""
    made = copy.deepcopy(dict(lm))
    for name, settings in _text_settings(made):
        change(name, settings)
    return made


def _text_settings(lm: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, each in _conditions(lm):
        if each["model"] == "text" and isinstance(each.get("text"), dict):
            yield name, each["text"]


def _conditions(lm: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, each in (lm.get("conditioners") or {}).items():
        if isinstance(each, Mapping) and "model" in each:
            yield str(name), each
