"""Weights on disk as safetensors, and putting weights into modules without paying for their initialisation.

A module is first built on torch's meta device, which costs no memory whatever a config claims; names and shapes are
compared; only then do the weights move in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micro_musicgen.errors import MicroMusicGenError, MissingFileError

if TYPE_CHECKING:
    import torch
    from torch import nn

Shapes = dict[str, tuple[int, ...]]

DEPTH_KEYS = frozenset({"num_layers", "n_q", "lstm", "n_residual_layers"})
"""Config keys that say how often something is built. Each repetition has at least one tensor of its own."""


def write_weights(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Writes `state` as a safetensors file at `path`, tensors on the CPU and in C order.

    Tensors that share memory are stored one by one: safetensors refuses shared storage. Not atomic; a release is
    written to a scratch folder and renamed whole.
    """
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, path)
    # safetensors makes files that only their owner may read; a release is as public as its other files.
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def read_shapes(path: Path) -> Shapes:
    """Gives name and shape of every tensor in a safetensors file, from its header alone.

    Raises:
        MissingFileError: there is no such file.
        MicroMusicGenError: it is not safetensors, or is cut off.
    """
    from safetensors import safe_open

    with _explained(path), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Gives the tensors of a safetensors file, on the CPU.

    Raises:
        MissingFileError: there is no such file.
        MicroMusicGenError: it is not safetensors, or is cut off.
    """
    from safetensors.torch import load_file

    with _explained(path):
        return load_file(path)


class LazyWeights(Mapping[str, "torch.Tensor"]):
    """The tensors of a safetensors file, each read when it is asked for and kept by nobody else.

    The file is closed in between: pages of a mapped file count as memory of the process for as long as it is mapped.
    """

    def __init__(self, path: Path) -> None:
        """Takes a file whose header can be read; see `read_shapes` for what is raised otherwise."""
        self.path = path
        self.shapes = read_shapes(path)

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        if name not in self.shapes:
            raise KeyError(name)
        with _explained(self.path), safe_open(self.path, framework="pt") as file:
            found: torch.Tensor = file.get_tensor(name).clone()
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class _explained:
    """Turns what safetensors says about a bad file into one line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        if not self.path.is_file():
            raise MissingFileError(f"{self.path} is missing; the release is incomplete, fetch or export it again")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from safetensors import SafetensorError

        if isinstance(error, SafetensorError | OSError):
            reason = str(error).splitlines()[0][:120]
            raise MicroMusicGenError(f"{self.path} is damaged ({reason}); fetch or export it again") from error


def check_depths(config: Mapping[str, Any], shapes: Shapes, *, source: str) -> None:
    """Refuses a config that repeats a part more often than there are tensors, before anything is built from it.

    Raises:
        MicroMusicGenError: naming `source`, the key and both numbers.
    """
    for key, value in _numbers(config):
        if key in DEPTH_KEYS and value > len(shapes):
            raise MicroMusicGenError(f"{source} says {key} {value}, but there are only {len(shapes)} tensors")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield str(key), value


def check_shapes(module: nn.Module, shapes: Shapes, *, source: str) -> None:
    """Refuses tensors that are not exactly those of `module`, by name and shape.

    Raises:
        MicroMusicGenError: naming `source` and the first difference.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in [*wanted, *shapes]:
        if wanted.get(name) != shapes.get(name):
            here, there = shapes.get(name, "missing"), wanted.get(name, "nothing")
            raise MicroMusicGenError(
                f"{source} does not hold the model that its config describes: {name} is {here}, expected {there}"
            )


def fill_module(
    build: Callable[[str], nn.Module], read: Callable[[], Mapping[str, torch.Tensor]], shapes: Shapes, *, source: str
) -> nn.Module:
    """Gives `build(device)` in evaluation mode on the CPU with the weights that `read` gives, after checking `shapes`.

    The module is built on the meta device, so nothing is allocated before the check and no weight is drawn at random
    to be thrown away.

    Raises:
        MicroMusicGenError: names or shapes differ.
    """
    import torch

    with torch.device("meta"):
        module = build("meta")
    check_shapes(module, shapes, source=source)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in read().items()}
    module.load_state_dict(state, assign=True)
    _refresh_weight_norm(module)
    stray = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    assert not stray, f"buffers outside the state_dict have no values: {stray}"
    return module.eval()


def _refresh_weight_norm(module: nn.Module) -> None:
    """Recomputes the plain `weight` attributes of weight norm, which the state_dict does not hold."""
    import torch
    from torch.nn.utils.weight_norm import WeightNorm

    with torch.no_grad():
        for part in module.modules():
            for hook in part._forward_pre_hooks.values():
                if isinstance(hook, WeightNorm):
                    hook(part, None)
