"""What clips are asked for: texts, and the labels that they should be recognised by."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micro_musicgen.errors import MicroMusicGenError, MissingFileError

MAX_PROMPTS_BYTES = 1 << 26


@dataclass(frozen=True)
class Prompt:
    """A text, and the label that a clip of it should have; None where nobody said."""

    text: str
    label: str | None = None


def read_prompts(path: Path, attribute: str) -> list[Prompt]:
    """Gives the prompts in a file: a text a line, or a JSON object a line with `description` and labels by attribute.

    Raises:
        MissingFileError: there is no such file.
        MicroMusicGenError: it is too large, empty, no UTF-8 text, or a line says no text.
    """
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; give a file with a text, or a JSON object, on each line")
    if path.stat().st_size > MAX_PROMPTS_BYTES:
        raise MicroMusicGenError(f"{path} has {path.stat().st_size} bytes, more than any list of prompts")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MicroMusicGenError(f"cannot read {path}: {error}; save it as UTF-8 text") from error
    found = [_parse(line, path, number, attribute) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise MicroMusicGenError(f"{path} holds no prompt; write a text on each line")
    return found


def _parse(line: str, path: Path, number: int, attribute: str) -> Prompt:
    if not line.lstrip().startswith("{"):
        return Prompt(line.strip())
    try:
        plain: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MicroMusicGenError(f"line {number} of {path} is no JSON ({error}); mend it") from error
    text = plain.get("description", plain.get("text"))
    if not isinstance(text, str) or not text.strip():
        raise MicroMusicGenError(f'line {number} of {path} says no text; write {{"description": "..."}}')
    label = plain.get(attribute)
    return Prompt(text.strip(), None if label is None else str(label))


def asked_labels(prompts: Sequence[Prompt], classes: Sequence[str]) -> list[str | None]:
    """Gives the label asked for by each prompt: the one it states, else the only class whose name its text holds."""
    return [prompt.label or _named(prompt.text, classes) for prompt in prompts]


def _named(text: str, classes: Sequence[str]) -> str | None:
    found = [name for name in classes if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None
