"""Files from the Hugging Face Hub, through huggingface_hub, with its many errors turned into one line each.

`HF_ENDPOINT` and `HF_TOKEN` are read when a call is made, so that a process can change them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from micro_musicgen.errors import MicroMusicGenError, MissingFileError

_HTTP_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})


def endpoint() -> str | None:
    """Gives the Hub's address when it is not the usual one."""
    return os.environ.get("HF_ENDPOINT") or None


def download_file(repo_id: str, filename: str) -> Path | None:
    """Gives the local copy of one file of a Hub repository, fetched when it is new; None when it has no such file.

    Raises:
        MissingFileError: there is no such repository.
        MicroMusicGenError: the Hub can't be reached, or refuses.
    """
    # Not hf_hub_download: without a network that one tries again for half a minute before it says so.
    path = download_folder(repo_id, [filename]) / filename
    return path if path.is_file() else None


def download_folder(repo_id: str, patterns: Sequence[str], *, local_dir: Path | None = None) -> Path:
    """Gives a folder with the files of a Hub repository that match `patterns`, fetching what is new.

    local_dir: where they go; the Hub's cache when None.

    Raises:
        MissingFileError: there is no such repository.
        MicroMusicGenError: the Hub can't be reached, or refuses.
    """
    from huggingface_hub import snapshot_download

    with explained(repo_id):
        folder = snapshot_download(
            repo_id,
            allow_patterns=list(patterns),
            local_dir=local_dir,
            endpoint=endpoint(),
            library_name="micro_musicgen",
        )
    return Path(folder)


@contextlib.contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turns what goes wrong with the Hub inside the block into one line that names `repo_id`."""
    try:
        yield
    except MicroMusicGenError:
        raise
    except Exception as error:
        mended = _explain(repo_id, error)
        if mended is None:
            raise
        raise mended from error


def _explain(repo_id: str, error: Exception) -> MicroMusicGenError | None:
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return MicroMusicGenError(f"{repo_id!r} is not a Hub id; write USER/NAME")
    if isinstance(error, errors.GatedRepoError):
        return MicroMusicGenError(f"{repo_id} is gated; accept its terms on the Hub, then run: hf auth login")
    if isinstance(error, errors.LocalTokenNotFoundError) or status in (401, 403):
        return _refused(repo_id, error)
    if isinstance(error, errors.RepositoryNotFoundError):
        return _no_repository(repo_id)
    if isinstance(error, errors.HfHubHTTPError):
        return MicroMusicGenError(f"the Hub refused {repo_id} ({_first_line(error)}); try again later")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) or _is_network(error):
        return _unreachable(repo_id, error)
    return None


def _refused(repo_id: str, error: Any) -> MicroMusicGenError:
    from huggingface_hub import errors

    if isinstance(error, errors.RepositoryNotFoundError):  # the Hub answers 401 for what does not exist
        return _no_repository(repo_id)
    return MicroMusicGenError(
        f"the Hub does not let you at {repo_id}; run: hf auth login (or set HF_TOKEN), with a token that may write"
    )


def _no_repository(repo_id: str) -> MissingFileError:
    return MissingFileError(f"there is no {repo_id} on the Hub, or it is private; check the id, or run: hf auth login")


def _unreachable(repo_id: str, error: Exception) -> MicroMusicGenError:
    cause = error
    while cause.__cause__ is not None and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    where = endpoint() or "https://huggingface.co"
    return MicroMusicGenError(
        f"cannot reach {where} for {repo_id} ({_first_line(cause)}); check the network, or name a local folder"
    )


def _is_network(error: BaseException | None) -> bool:
    while error is not None:
        if type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES or isinstance(error, ConnectionError):
            return True
        error = error.__cause__
    return False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
