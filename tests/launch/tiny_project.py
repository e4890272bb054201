"""A Dora project that is made in a folder, run by Dora's command in processes of their own, and takes no time.

Dora imports torch to ask for a rank. Here it finds a torch that only knows that there is none, and no Hydra.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from local_queue import wait_for

from micro_musicgen.launch.record import FINAL, Record, records

TRAIN = '''
"""Each epoch pushes one metric. `--hold` waits for a file of that name after the first one, `--fail` fails then,
`--add` pushes the sum of all ranks instead."""
import argparse, os, time
from dora import argparse_main, get_xp
from micro_musicgen.launch.install import install

parser = argparse.ArgumentParser()
parser.add_argument("--x", type=int, default=0)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--hold", default="")
parser.add_argument("--fail", default="")
parser.add_argument("--add", type=int, default=0)

@argparse_main(parser, dir=os.environ["TINY_DIR"], exclude=["epochs", "hold", "fail"])
def main():
    xp = get_xp()
    if xp.cfg.add:
        import torch
        from dora import distrib

        distrib.init("gloo")
        ranks = torch.ones(1) * (distrib.rank() + 1)
        torch.distributed.all_reduce(ranks)
        xp.link.push_metrics({"train": {"loss": float(ranks), "pid": os.getpid()}})
        return torch.distributed.destroy_process_group()  # or torch aborts the process at its end, now and then
    xp.link.load()
    print("resuming from", len(xp.link.history), flush=True)
    for epoch in range(len(xp.link.history), xp.cfg.epochs):
        if epoch:
            while xp.cfg.hold and not os.path.exists(xp.cfg.hold):
                time.sleep(0.02)
            if xp.cfg.fail and not os.path.exists(xp.cfg.fail):
                raise SystemExit("failing as I was told")
        xp.link.push_metrics({"train": {"loss": xp.cfg.x / (epoch + 1), "pid": os.getpid()}})
    print("done", flush=True)

install()
'''
GRID = """
import json, pathlib
import treetable as tt
from dora import Explorer

class Tiny(Explorer):
    def get_grid_metrics(self):
        return [tt.group("train", [tt.leaf("epoch"), tt.leaf("loss", ".2f")])]
    def process_history(self, history):
        return {"train": {"epoch": len(history), **(history[-1]["train"] if history else {})}}

@Tiny
def explorer(launcher):
    plan = json.loads(pathlib.Path("plan.json").read_text())
    launcher.slurm_(**{"gpus": 0, **plan["slurm"]})
    if plan["array"]:
        with launcher.job_array():
            for experiment in plan["experiments"]:
                launcher(**experiment)
    else:
        for experiment in plan["experiments"]:
            launcher(**experiment)
"""
TORCH = """
class Tensor: pass
class distributed:
    @staticmethod
    def is_initialized():
        return False
"""
STATES = re.compile(r"\b(PEN|RUN|COM|FAI|CAN|TIM|NOD|N/A)\b")


class Project:
    """The project, its grid `tiny`, and Dora's command."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "a home"
        self.root = self.home / "local"
        files = {"tiny/__init__.py": "", "tiny/train.py": TRAIN, "tiny/grids/__init__.py": ""}
        files |= {"tiny/grids/tiny.py": GRID, "stubs/torch/__init__.py": TORCH, "stubs/hydra.py": "raise ImportError"}
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        path = os.pathsep.join([str(folder / "stubs"), str(folder)])
        self.environment = dict(os.environ) | {"PYTHONPATH": path, "TINY_DIR": str(self.home)}
        self.environment |= {"DORA_LOCAL": "1", "DORA_LOCAL_JOBS": "2"}

    def plan(self, *experiments: dict[str, Any], array: bool = False, **slurm: Any) -> None:
        """Sets what the grid holds."""
        text = json.dumps({"experiments": experiments, "array": array, "slurm": slurm})
        (self.folder / "plan.json").write_text(text)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Gives Dora's command, running, in a process group of its own as from a shell."""
        return subprocess.Popen(
            [sys.executable, "-m", "dora", "-P", "tiny", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_heed_signals,
        )

    def dora(self, *words: str, answer: str = "", code: int = 0) -> str:
        """Gives what Dora's command prints. It has to end with `code`."""
        with self.start(*words) as command:
            text, _ = command.communicate(answer, timeout=60)
        assert command.returncode == code, text
        return re.sub(r"\x1b\[[\d;]*m", "", text)

    def grid(self, *words: str, answer: str = "", code: int = 0) -> list[str]:
        """Gives the states in the table of `dora grid tiny`, from top to bottom, as Dora cuts them."""
        text = self.dora("grid", "tiny", "--no_monitoring", *words, answer=answer, code=code)
        return STATES.findall(text.partition("Monitoring Grid")[2])

    def wait(self) -> list[str]:
        """Gives the states in the table once all jobs have ended."""
        wait_for(lambda: all(one.state() in FINAL and not one.is_alive() for one in self.jobs()))
        return self.grid("--dry_run")

    def jobs(self) -> list[Record]:
        return records(self.root)

    def histories(self) -> list[list[dict[str, Any]]]:
        """Gives the history of each experiment."""
        return [json.loads(path.read_text()) for path in sorted(self.home.glob("xps/*/history.json"))]


def _heed_signals() -> None:
    """Undoes what shells do to background jobs (Ctrl-C) and nohup to its own (SIGHUP); a CI may be either."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
