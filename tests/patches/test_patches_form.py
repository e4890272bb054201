"""What every patch file has to be."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from micro_musicgen import paths
from micro_musicgen.upstream.load import find_patches

PATCHES = {patch.name: patch for patch in find_patches()}


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_is_small_and_says_what_it_mends(name: str) -> None:
    patch = PATCHES[name]
    module = importlib.import_module(f"micro_musicgen.patches.{name}")
    source = Path(module.__file__ or "").read_text(encoding="utf-8")
    assert module.__doc__ and len(source.splitlines()) <= 65
    assert patch.broken and patch.issue and patch.gone_when
    assert patch.before_import or patch.fingerprints, "a patch that wraps something knows what it wraps"
    assert patch.versions or patch.fingerprints


def test_every_file_in_patches_is_found() -> None:
    files = {path.stem for path in paths.patches_dir().glob("*.py")} - {"__init__"}
    assert files == set(PATCHES)


def test_every_patch_has_a_test() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    tested = {name for name in PATCHES if re.search(rf"def test_{name}", sources)}
    assert tested == set(PATCHES)
