"""Where a CLAP model's files are and what must be in them, before transformers reads anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from micro_musicgen import hub_client, storage
from micro_musicgen.errors import MicroMusicGenError, MissingExtraError, MissingFileError

CONFIG_FILE, EXTRACTOR_FILE = "config.json", "preprocessor_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
PATTERNS = (CONFIG_FILE, EXTRACTOR_FILE, *TOKENIZER_FILES, "*.safetensors", "*.safetensors.index.json")
EXAMPLE = "laion/clap-htsat-unfused"


def find_clap(reference: str) -> Path:
    """Gives the folder of a CLAP model, by its path or by its Hub id, fetched when it is new.

    Raises:
        MissingExtraError: transformers is not installed.
        MissingFileError: there is no such model.
        MicroMusicGenError: the Hub can't be reached; the folder holds no CLAP, no safetensors, or is incomplete.
    """
    try:
        version("transformers")
    except PackageNotFoundError:
        raise MissingExtraError(
            f"CLAP ({reference}) needs transformers; run: pip install 'micro-musicgen[clap]', or do without CLAP"
        ) from None
    path = Path(reference).expanduser()
    folder = path if path.is_dir() else _fetched(reference)
    _check(folder, reference)
    return folder


def _fetched(reference: str) -> Path:
    if reference.startswith((".", "/", "~")) or reference.count("/") != 1:
        raise MissingFileError(
            f"there is no folder {reference} with a CLAP model; give one, or a Hub id such as {EXAMPLE}"
        )
    try:
        return hub_client.download_folder(reference, PATTERNS)
    except MissingFileError:
        raise
    except MicroMusicGenError as error:
        raise MicroMusicGenError(
            f"{error}; or fetch {CONFIG_FILE}, {EXTRACTOR_FILE}, model.safetensors and tokenizer.json of {reference} "
            "elsewhere and give their folder instead of the id"
        ) from error


def _check(folder: Path, reference: str) -> None:
    config = storage.read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "clap":
        held = f"a {kind}" if kind else f"no {CONFIG_FILE} of a model"
        raise MicroMusicGenError(f"{reference} holds {held} and not a CLAP model; give one such as {EXAMPLE}")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
        why = f"{pickled[0]} is a pickle, which can run code" if pickled else "it lacks its weights"
        raise MicroMusicGenError(
            f"{reference} has no .safetensors file ({why}); give a CLAP model that is saved as safetensors"
        )
    if not (folder / EXTRACTOR_FILE).is_file():
        raise MicroMusicGenError(f"{reference} lacks {EXTRACTOR_FILE}; fetch the model again, all files of it")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise MicroMusicGenError(f"{reference} lacks tokenizer.json; fetch the model again, all files of it")


def read_clap(folder: Path, reference: str) -> tuple[Any, Any, Any]:
    """Gives transformers' model, feature extractor and tokenizer in `folder`, complete or not at all.

    Raises:
        MicroMusicGenError: a file is damaged, or weights are missing.
    """
    import micro_musicgen.upstream  # noqa: F401  (transformers imports torchaudio, which may need its patch)

    with _quietly():
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            model, report = ClapModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **local)
            extractor = ClapFeatureExtractor.from_pretrained(folder, **local)
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
        except Exception as error:  # safetensors, tokenizers and json each have errors of their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise MicroMusicGenError(f"{reference} cannot be loaded as a CLAP model: {reason}") from error
    # transformers draws at random what a file lacks. Older files lack the constant position_ids, which are no weights.
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("_ids"))
    if missing:
        raise MicroMusicGenError(
            f"{reference} lacks {len(missing)} of its weights, {missing[0]} among them; fetch it again"
        )
    return model, extractor, tokenizer


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps transformers from drawing bars and tables of weights while a model loads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
