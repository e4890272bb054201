"""What changes when several processes train one model: who writes, what is averaged, who stops whom.

Started by `dora run -d`, torchrun or Slurm; each gives every process its rank, and `init` joins them. With one process
every function here does nothing, so solvers call them without asking.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flashy
import torch
from torch import nn


def init() -> None:
    """Joins the processes of this run, if it has several: by NCCL where there are GPUs, by gloo elsewhere."""
    flashy.distrib.init("nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    """Parts them again: with threads of gloo alive at its end torch now and then aborts a process that is done."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank() -> int:
    """Gives this process's number; 0 writes the files."""
    return int(flashy.distrib.rank())


def world_size() -> int:
    """Gives the number of processes that train this run."""
    return int(flashy.distrib.world_size())


def is_main() -> bool:
    """Says whether this is the process that writes."""
    return rank() == 0


def shared(value: Any) -> Any:
    """Gives rank 0's `value`, plain data, to every rank."""
    if world_size() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def any_rank(flag: bool) -> bool:
    """Says whether `flag` is true on any rank. All ranks have to call it."""
    if world_size() == 1:
        return flag
    device = "cuda" if torch.cuda.is_available() else "cpu"
    raised = torch.tensor(float(flag), device=device)
    torch.distributed.all_reduce(raised, op=torch.distributed.ReduceOp.MAX)
    return bool(raised.item())


def summed(value: torch.Tensor) -> torch.Tensor:
    """Gives the sum of `value` over ranks."""
    if world_size() > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def averaged(metrics: Mapping[str, float]) -> dict[str, float]:
    """Gives metrics averaged over ranks, in double precision. Every rank has to hold the same keys."""
    if world_size() == 1 or not metrics:
        return dict(metrics)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values = torch.tensor([metrics[key] for key in sorted(metrics)], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values)
    means = dict(zip(sorted(metrics), (values / world_size()).tolist(), strict=True))
    return {key: means[key] for key in metrics}


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients over ranks, in place."""
    flashy.distrib.sync_gradients(list(parameters))


def same_weights(model: nn.Module) -> None:
    """Gives every rank the weights of rank 0."""
    flashy.distrib.broadcast_model(model)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """Lets rank 0 do a block before the others: what it leaves on disk, they find there."""
    if not is_main():
        flashy.distrib.barrier()
    yield
    if is_main():
        flashy.distrib.barrier()
