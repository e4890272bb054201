"""Sharing a release on the Hugging Face Hub: push and pull in their simple form."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from micro_musicgen import hub_client, storage
from micro_musicgen.codec import parts as codec_parts
from micro_musicgen.errors import MicroMusicGenError, MissingFileError
from micro_musicgen.release import decoder, encoders
from micro_musicgen.release.source import AUDIOCRAFT_FILES, LM_WEIGHTS, MICRO_FILES, MICRO_PATTERNS
from micro_musicgen.upstream.packages import LM_PACKAGE

RELEASE_FILES = (*dict.fromkeys((*MICRO_FILES, *AUDIOCRAFT_FILES)),)
RELEASE_PATTERNS = (*dict.fromkeys((*MICRO_PATTERNS, *AUDIOCRAFT_FILES)),)


def push(release: Path | str, repo_id: str, *, private: bool = False) -> str:
    """Gives the address of `repo_id` on the Hub after uploading a release folder there, in one commit.

    The repository is made when it is new; `private` decides about a new one only. Only a release's own files go up.

    Raises:
        MissingFileError: `release` holds no release.
        MicroMusicGenError: a file is not the one that was released, no token, or the Hub can't be reached.
    """
    from huggingface_hub import HfApi

    folder = Path(release).expanduser()
    encoder_files = _check_release(folder)
    api = HfApi(endpoint=hub_client.endpoint(), library_name="micro_musicgen")
    with hub_client.explained(repo_id):
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=[*RELEASE_FILES, *encoder_files],
            commit_message=f"Release {folder.resolve().name}",
        )
    return str(url)


def _check_release(folder: Path) -> list[str]:
    """Refuses to upload what nobody could load; gives the files of the release's text encoder."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is no folder; export a run first: micro-musicgen export RUN --out {folder}")
    if codec_parts.is_release(folder):
        config = codec_parts.read_release_config(folder)
        codec_parts.checked_file(folder, LM_WEIGHTS, config)
        if config.codec_reference is None:
            codec_parts.checked_file(folder, codec_parts.WEIGHTS_FILE, config)
        if config.decoder is not None:
            decoder.check_release(folder, config)
        encoders.placed(config, folder)
        return sorted(name for name in config.hashes if name.startswith(f"{encoders.FOLDER}/"))
    if not (folder / LM_PACKAGE).is_file():
        raise MissingFileError(f"{folder} holds no release; make one: micro-musicgen export RUN --out {folder}")
    return []


def pull(repo_id: str, out: Path | str) -> Path:
    """Gives `out` after downloading the release `repo_id` from the Hub to it. The folder appears when it is complete.

    Raises:
        MissingFileError: there is no such repository, or it holds no release.
        MicroMusicGenError: `out` is taken, a file is damaged, or the Hub can't be reached.
    """
    out = Path(out).expanduser()
    target = out.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise MicroMusicGenError(f"{out} is not empty; name another folder to pull {repo_id} to")
    scratch = storage.ensure_writable(target.with_name(f".{target.name}.{os.getpid()}.tmp"))
    try:
        hub_client.download_folder(repo_id, RELEASE_PATTERNS, local_dir=scratch)
        shutil.rmtree(scratch / ".cache", ignore_errors=True)  # huggingface_hub's notes on the download
        if not any((scratch / name).is_file() for name in (codec_parts.CONFIG_FILE, LM_PACKAGE)):
            raise MissingFileError(f"{repo_id} on the Hub holds no release; check the id")
        _check_release(scratch)
        if target.exists():
            target.rmdir()
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out
