"""The queue under the real thing: torch, gloo, and this package's own experiments."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
from fixtures_models import write_codec_run
from local_queue import Queue, wait_for
from solver_runs import LM_DEBUG
from tiny_project import STATES, Project

from micro_musicgen import paths
from micro_musicgen.launch.record import FINAL, records

GRID = """
from dora import Explorer

@Explorer
def explorer(launcher):
    launcher.slurm_(gpus=0)
    launcher.bind_({overrides!r})
    launcher(seed=1)
    launcher(seed=2)
    launcher.slurm(gpus=2)(seed=3)
"""


@pytest.mark.slow
def test_two_tasks_add_up_with_gloo(project: Project) -> None:
    project.environment["PYTHONPATH"] = str(project.folder)  # torch itself
    project.plan({"add": 1}, gpus=2)
    project.grid()
    assert project.wait() == ["COM"]
    assert [one["train"]["loss"] for one in project.histories()[0]] == [3.0], "1 + 2, pushed once"
    (job,) = project.jobs()
    assert job.log_file(0).exists() and job.log_file(1).exists()


@pytest.mark.slow
def test_this_packages_own_experiments(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dora -P micro_musicgen grid`, except that the grid is the test's: two runs, and one in two processes."""
    from micro_musicgen.audio.synth import write_breaks
    from micro_musicgen.data.prepare import prepare

    home, project = queue.folder, queue.folder / "project"
    monkeypatch.setenv(paths.HOME_VARIABLE, str(home))
    write_breaks(home / "sounds", seed=0, minutes=0.4)
    prepare(home / "sounds", "toy", valid_fraction=0.3)
    write_codec_run()
    files = {"mine/__init__.py": "", "mine/grids/__init__.py": "", "mine/grids/toy.py": GRID}
    files["mine/train.py"] = "from micro_musicgen.train import main\nmain.dora.grid_package = 'mine.grids'\n"
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text.format(overrides=[*LM_DEBUG, "optim.epochs=1"]) if "toy.py" in name else text)

    def grid(*words: str) -> list[str]:
        command = [sys.executable, "-m", "dora", "-P", "mine", "grid", "toy", "--no_monitoring", *words]
        environment = dict(os.environ) | {"DORA_LOCAL": "1", "DORA_LOCAL_JOBS": "2"}
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        text = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
        return STATES.findall(text.partition("Monitoring Grid")[2])

    assert grid() == ["RUN", "RUN", "PEN"]
    wait_for(lambda: all(one.state() in FINAL for one in records(queue.root)), 240)
    assert grid() == ["COM"] * 3, [one.log_file().read_text()[-2000:] for one in records(queue.root)]
    histories = [json.loads(path.read_text()) for path in home.glob("xps/*/history.json")]
    assert sum("valid" in history[0] for history in histories) == 3
