"""The user's own Python files, `plugins/*.py` in the data home: imported when a name is asked for that nobody knows.

They are the one place from which a config's name can lead to code that is not installed. Releases and run folders
never bring any: only files that the user put there count.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from micro_musicgen import paths
from micro_musicgen.errors import MicroMusicGenError

PACKAGE = "micro_musicgen_plugins"
_loaded: set[Path] = set()


def plugins_dir() -> Path:
    """Gives the folder of the user's plugins. It need not exist."""
    return paths.home() / "plugins"


def load_plugins() -> list[Path]:
    """Imports, in the order of their names, the plugins that were not imported yet, and gives their paths.

    Raises:
        MicroMusicGenError: one of them fails; it is tried again the next time.
    """
    found = [path for path in sorted(plugins_dir().glob("*.py")) if path not in _loaded]
    for path in found:
        _load(path)
        _loaded.add(path)
    return found


def _load(path: Path) -> None:
    name = f"{PACKAGE}.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = " ".join(str(error).split())[:200]
        raise MicroMusicGenError(
            f"the plugin {path} failed: {type(error).__name__}: {reason}; mend it, or move it out of that folder"
        ) from error
