"""What a sound file says about itself: the JSON file beside it, the tags inside it, and its name.

None of them can fail a data set: what can't be read is passed over, and a broken JSON file is noted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from micro_musicgen.audio.tempo import name_bpm, name_parts
from micro_musicgen.data.info import Cleaned, clean, field_name, musical_key
from micro_musicgen.data.licenses import license_id

MAX_SIDECAR_BYTES = 1 << 20
_NO_WORDS = frozenset(
    "audio bar bars bounce bpm copy edit export feat file final for from full key loop loops major master minor mix "
    "new rec recording sample samples stem stems take test the track untitled version wav with and".split()
)
_PROGRAMS = re.compile(
    r"processed by|encoded|ripped|created (with|by|in)|made (with|in)|exact audio|lavf|[0-9A-F]{8} ", re.I
)
_TAG_NAMES = {"comment": "description", "comments": "description", "synopsis": "description", "tcop": "copyright"}


def read_sidecar(path: Path) -> Cleaned | None:
    """Gives what `NAME.json` beside the sound at `path` says, None where there is none. Keys are audiocraft's.

    A file that can't be used gives nothing and says why in `refused`.
    """
    sidecar = path.with_suffix(".json")
    try:
        size = sidecar.stat().st_size if sidecar.is_file() else None
    except (OSError, ValueError):
        return None
    if size is None:
        return None
    if size > MAX_SIDECAR_BYTES:
        return Cleaned(refused=(f"{size} bytes are more than the {MAX_SIDECAR_BYTES} that are read",))
    try:
        plain = json.loads(sidecar.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return Cleaned(refused=(f"is not JSON that can be read ({_short(error)})",))
    if not isinstance(plain, dict):
        return Cleaned(refused=("holds no object of names and values",))
    return clean(plain)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def read_tags(path: Path) -> Cleaned:
    """Gives what the tags inside the file at `path` say; nothing where neither FFmpeg nor libsndfile reads any."""
    tags = _av_tags(path)
    if tags is None:
        tags = _soundfile_tags(path)
    return clean(_told(tags))


def _av_tags(path: Path) -> dict[str, str] | None:
    import av

    for encoding in ("utf-8", "latin-1"):  # old tags name no encoding
        try:
            with av.open(
                os.path.abspath(path), metadata_encoding=encoding, options={"protocol_whitelist": "file"}
            ) as container:
                found = [stream.metadata for stream in container.streams.audio[:1]]
                return {name: text for tags in (*found, container.metadata) for name, text in tags.items()}
        except UnicodeDecodeError:
            continue
        except (av.FFmpegError, OSError, ValueError, IndexError):
            return None
    return None


def _soundfile_tags(path: Path) -> dict[str, str]:
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            return dict(file.copy_metadata())
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError):
        return {}


def _told(tags: Mapping[str, str]) -> dict[str, Any]:
    """Gives tags by the names of our fields. Programs sign in comments, and shops leave addresses there: no text.

    A note of copyright is a licence only where it names one.
    """
    told: dict[str, Any] = {}
    for name, text in tags.items():
        known = _TAG_NAMES.get(name.casefold()) or field_name(name)
        if known is None or not text.strip():
            continue
        if known == "description" and re.search(r"https?://|www\.", text):
            known = "source"
        elif known == "description" and _PROGRAMS.match(text.strip()):
            continue
        elif known == "copyright" and license_id(text):
            known = "license"
        told.setdefault(known, text)
    return told


def read_name(path: Path) -> Cleaned:
    """Gives bpm, key and words that a file name states: `amen_break_170bpm_F#min.wav`.

    A bare number is a tempo only inside the name, `dub_140_deep.wav`, alone there and from 60 to 200. Words with
    digits, of fewer than three letters, or that every file has ("loop", "final") are passed over.
    """
    bpm, stem = name_bpm(path.stem)
    info: dict[str, Any] = {} if bpm is None else {"bpm": bpm}
    parts = name_parts(stem)
    for index, part in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else ""
        pair = musical_key(f"{part} {following}", needs_mode=True) if len(following) > 2 else None
        key = musical_key(part, needs_mode=True) or pair
        if key is not None:
            info["key"] = key
            del parts[index : index + (2 if key == pair else 1)]
            break
    words = [part.casefold() for part in parts if part.isalpha() and 3 <= len(part) <= 24]
    info["keywords"] = [word for word in words if word not in _NO_WORDS]
    return clean(info)
