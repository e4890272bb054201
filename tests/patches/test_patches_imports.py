"""Patches that let audiocraft be imported at all. Each one in a process of its own, where libraries can be hidden."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from micro_musicgen.upstream import patcher

HEAVY = ("transformers", "spacy", "num2words", "librosa", "torchmetrics")


def test_heavy_imports_die_without(script: Any) -> None:
    done = script("import audiocraft.modules.conditioners", without="heavy_imports", hide=HEAVY)
    assert done.returncode != 0 and "ModuleNotFoundError" in done.stderr


STAND_INS = """
import importlib.util, json
import audiocraft.models, audiocraft.solvers, audiocraft.metrics
from audiocraft.modules import conditioners
from micro_musicgen.errors import MissingExtraError

def says(call):
    try:
        call()
    except MissingExtraError as error:
        return str(error)

def importable(name):
    try:
        __import__(name)
    except ModuleNotFoundError:
        return False
    return True

print(json.dumps({
    "spec": [name for name in ("transformers", "xformers", "spacy") if importlib.util.find_spec(name)],
    "importable": [name for name in ("transformers", "spacy", "torchmetrics") if importable(name)],
    "call": says(lambda: conditioners.T5Tokenizer.from_pretrained("t5-small")),
    "make": says(lambda: conditioners.WhiteSpaceTokenizer(10)),
    "metric": says(lambda: audiocraft.metrics.CLAPTextConsistencyMetric("x", "y")),
    "instance": isinstance(conditioners.ConditioningProvider({}), audiocraft.models.encodec.HFEncodecModel),
    "getattr": hasattr(conditioners.spacy, "__file__"),
}))
"""


def test_heavy_imports_are_stood_in_for_and_nobody_else_is_fooled(script: Any) -> None:
    done = script(STAND_INS, hide=("xformers", *HEAVY))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["spec"] == [] and found["importable"] == []
    assert "transformers" in found["call"] and "pip install 'micro-musicgen[text]'" in found["call"]
    assert "spacy" in found["make"] and "[text]" in found["make"]
    assert "torchmetrics" in found["metric"] and "[clap]" in found["metric"]
    assert found["instance"] is False and found["getattr"] is False


INSTALLED = """
import sys
import audiocraft.models, audiocraft.solvers
from audiocraft.modules import conditioners
before = "transformers" in sys.modules
encoder = conditioners.T5EncoderModel
print(before, isinstance(3, encoder), hasattr(encoder, "__wrapped__"), "transformers" in sys.modules)
class Mine(encoder): pass
print(encoder.KIND, encoder(2).size, Mine(3).size, isinstance(Mine(4), encoder), issubclass(Mine, encoder))
import transformers
print(Mine.__mro__[1] is transformers.T5EncoderModel)
"""


def test_an_installed_heavy_import_waits_until_it_is_touched(script: Any, tmp_path: Path) -> None:
    """A stand-in for transformers itself, so that the test knows what it does and takes no seconds."""
    (tmp_path / "transformers.py").write_text(
        "class T5EncoderModel:\n    KIND = 't5'\n    def __init__(self, size): self.size = size\n", encoding="utf-8"
    )
    done = script(INSTALLED, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["False False False False", "t5 2 3 True True", "True"]


@pytest.mark.slow
def test_building_a_model_does_not_import_transformers(script: Any) -> None:
    if find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    code = (
        "import sys, audiocraft.models.builders as b\n"
        "from audiocraft.modules.conditioners import T5Tokenizer\n"
        "print('transformers' in sys.modules, T5Tokenizer.model_input_names, 'transformers' in sys.modules)"
    )
    done = script(code)
    assert done.stdout.splitlines()[-1] == "False ['input_ids', 'attention_mask'] True", done.stderr


@pytest.mark.slow
def test_heavy_imports_give_way_to_what_is_installed(script: Any, tmp_path: Path) -> None:
    (tmp_path / "spacy.py").write_text("REAL = True\n", encoding="utf-8")
    (tmp_path / "num2words.py").write_text("import not_there_either\n", encoding="utf-8")
    code = "import audiocraft.modules.conditioners as c; print(c.spacy.REAL)"
    broken = script(code, PYTHONPATH=str(tmp_path))
    assert "not_there_either" in broken.stderr, "an installed but broken library is not hidden behind a stand-in"
    (tmp_path / "num2words.py").write_text("def num2words(n): return str(n)\n", encoding="utf-8")
    done = script(code, PYTHONPATH=str(tmp_path))
    assert done.stdout.splitlines()[-1] == "True", done.stderr


ATTENTION = """
import json, torch
from audiocraft.modules import transformer
torch.manual_seed(0)
x = torch.randn(2, 6, 16)
settings = dict(d_model=16, num_heads=2, num_layers=1, dim_feedforward=32, causal=True, custom=True)
def out(backend, memory_efficient):
    torch.manual_seed(0)
    transformer.set_efficient_attention_backend(backend)
    model = transformer.StreamingTransformer(**settings, memory_efficient=memory_efficient).eval()
    with torch.no_grad():
        return model(x), model
slow, _ = out("torch", False)
compiled = torch.compile(out("torch", True)[1], backend="eager", fullgraph=False)
print(json.dumps({
    "torch": (out("torch", True)[0] - slow).abs().max().item(),
    "xformers": (out("xformers", True)[0] - slow).abs().max().item(),
    "compiled": (compiled(x) - out("torch", True)[0]).abs().max().item(),
    "profiled": transformer._is_profiled(),
}))
"""


@pytest.mark.slow
def test_xformers_ops_are_torchs(script: Any) -> None:
    """Attention without xformers agrees with upstream's own slow attention, under torch.compile too."""
    broken = script("import audiocraft.modules.rope", without="xformers_ops", hide=["xformers"])
    assert "No module named 'xformers'" in broken.stderr
    done = script(ATTENTION, hide=["xformers"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("profiled") is False
    assert all(difference < 1e-5 for difference in found.values()), found


def test_xformers_ops_masks_agree_with_the_formula() -> None:
    from micro_musicgen.patches.xformers_ops import LowerTriangularMask, memory_efficient_attention

    query, key, value = torch.randn(3, 2, 5, 2, 4, generator=torch.Generator().manual_seed(0))  # [B, T, H, D]
    scores = torch.einsum("bthd,bshd->bhts", query, key) / 2
    for bias, mask in (
        (None, torch.zeros(5, 5)),
        (LowerTriangularMask(), torch.full((5, 5), -torch.inf).triu(1)),
        (torch.eye(5).expand(2, 2, 5, 5), torch.eye(5)),
    ):
        expected = torch.einsum("bhts,bshd->bthd", (scores + mask).softmax(-1), value)
        torch.testing.assert_close(memory_efficient_attention(query, key, value, bias), expected)


@pytest.mark.slow
def test_torchaudio_extension_that_does_not_load(script: Any, tmp_path: Path) -> None:
    """The real torchaudio with a compiled part that no torch loads, as a CUDA build is beside a CPU torch."""
    installed = find_spec("torchaudio")
    assert installed is not None and installed.origin is not None
    copy = tmp_path / "torchaudio"
    shutil.copytree(Path(installed.origin).parent, copy, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    (copy / "lib").mkdir()
    (copy / "lib" / "_torchaudio.abi3.so").write_bytes(b"not a library")
    code = (
        "import torch, torchaudio\n"
        "print(torchaudio.__file__, torchaudio.transforms.Resample(2, 1)(torch.ones(8)).shape)"
    )
    broken = script(code, without="torchaudio_extension", PYTHONPATH=str(tmp_path))
    assert "OSError" in broken.stderr
    done = script(code, PYTHONPATH=str(tmp_path))
    assert str(copy) in done.stdout and "torch.Size([4])" in done.stdout, done.stderr


def test_torchaudio_extension_of_another_cuda_is_no_reason_to_stop() -> None:
    importlib.import_module("torchaudio._extension")  # the patch changes it too

    from micro_musicgen.patches.torchaudio_extension import PATCH

    def differs() -> None:
        raise RuntimeError("PyTorch has CUDA version 13.2 whereas TorchAudio has CUDA version 12.8")

    module = SimpleNamespace(_load_lib=lambda lib: True, _check_cuda_version=differs)
    PATCH.apply(module)
    assert module._check_cuda_version() is None


@pytest.mark.slow
def test_train_config_is_ours(script: Any, tmp_path: Path) -> None:
    code = """
import audiocraft.train
from micro_musicgen import paths
main = audiocraft.train.main
assert main.full_config_path == paths.config_dir(), main.full_config_path
print(main.dora.dir)
"""
    broken = script(code, without="train_config", MICRO_MUSICGEN_HOME=str(tmp_path))
    assert "Primary config directory not found" in broken.stderr
    done = script(code, MICRO_MUSICGEN_HOME=str(tmp_path))
    assert done.stdout.splitlines()[-1] == str(tmp_path), done.stderr


@pytest.mark.parametrize("first", ["upstream", "upstream.doctor", "upstream.stubs", "patches.heavy_imports"])
def test_importing_the_door_is_cheap_whoever_comes_first(first: str) -> None:
    loaded = "[name for name in ('torch', 'audiocraft', 'dora', 'numpy') if name in sys.modules]"
    reports = "len(micro_musicgen.upstream.patcher().reports)"
    code = f"import sys, micro_musicgen.{first}, micro_musicgen.upstream; print({loaded}, {reports})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["[]", str(len(patcher().reports))], done.stderr
