"""torchaudio's compiled part fits one build of torch; beside another build, all of torchaudio won't import.

Its Python code works without: `_load_lib` giving False is its own way to say "built without".
"""

import ctypes
import functools
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from micro_musicgen.patching import Patch


def _apply(module: Any) -> None:
    load, check = module._load_lib, module._check_cuda_version

    @functools.wraps(load)
    def load_if_it_fits(lib: str) -> bool:
        return _fits() and bool(load(lib))

    @functools.wraps(check)
    def check_and_go_on() -> Any:
        try:
            return check()
        except RuntimeError:  # another minor version of CUDA, which only concerns losses that nobody here uses
            return None

    module._load_lib, module._check_cuda_version = load_if_it_fits, check_and_go_on
    package = sys.modules["torchaudio._extension"]
    if hasattr(package, "is_module_available") and not _fits():  # torchaudio < 2.11 asks this first
        vars(package)["is_module_available"] = lambda *names: False


def _fits() -> bool:
    spec = find_spec("torchaudio")
    assert spec is not None and spec.origin is not None
    try:
        for library in (Path(spec.origin).parent / "lib").glob("_torchaudio*"):
            ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def _needed() -> bool:
    import torch

    return torch.version.cuda is not None or not _fits()


PATCH = Patch(
    name="torchaudio_extension",
    target="torchaudio._extension.utils:_load_lib",
    broken="import torchaudio raises OSError (libc10_cuda.so) when PyPI's CUDA build sits beside a CPU torch",
    issue="none known",
    package="torchaudio",
    versions=(),
    fingerprints=("4c5b50c7728ec522", "195be7524d376155"),  # 2.11; 2.6 to 2.10
    gone_when="torchaudio's wheel no longer links CUDA",
    apply=_apply,
    needed=_needed,
)
