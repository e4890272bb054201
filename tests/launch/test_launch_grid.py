"""`dora grid` and its flags without Slurm: the commands a person types, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from local_queue import controller_of, is_running, wait_for
from tiny_project import STATES, Project

from micro_musicgen.launch import locks
from micro_musicgen.launch.record import PENDING, RUNNING


def epoch_of(project: Project, count: int = 1) -> None:
    """Waits until `count` experiments have finished their first epoch, and so are at their hold."""
    wait_for(lambda: len(project.histories()) >= count)


def task_pid(project: Project) -> int:
    """Gives the process id of the first experiment's task, which it pushes with its metrics."""
    return int(project.histories()[0][0]["train"]["pid"])


@pytest.mark.slow
def test_two_at_a_time_to_the_end(project: Project) -> None:
    project.plan(*({"x": x, "hold": "go"} for x in range(3)))
    assert project.grid() == ["RUN", "RUN", "PEN"]
    epoch_of(project, 2)
    assert project.grid() == ["RUN", "RUN", "PEN"] and len(project.jobs()) == 3, "asked again, nothing is new"
    (project.folder / "go").touch()
    assert project.wait() == ["COM", "COM", "COM"]
    assert sorted(len(history) for history in project.histories()) == [2, 2, 2]
    assert [project.home / "xps" / link.name for link in (project.home / "grids" / "tiny").iterdir()]


def test_an_array_is_as_many_jobs(project: Project) -> None:
    project.plan(*({"x": x} for x in range(3)), array=True)
    project.grid()
    assert project.wait() == ["COM", "COM", "COM"]
    assert [job.id for job in project.jobs()] == ["1", "2", "3"]


@pytest.mark.slow
def test_cancel_and_retry_goes_on_where_it_was(project: Project) -> None:
    project.plan({"x": 1, "hold": "go"}, {"x": 2, "hold": "go"}, {"x": 3})
    project.grid()
    epoch_of(project, 2)
    project.dora("grid", "tiny", "-C")
    assert project.grid() == ["CAN", "CAN", "CAN"], "without -r they stay cancelled"
    (project.folder / "go").touch()
    project.grid("-r")
    assert project.wait() == ["COM", "COM", "COM"]
    text = project.dora("grid", "tiny", "--dry_run", "-l", "0")
    assert "resuming from 1" in text and "done" in text


def test_cancel_with_nothing_to_cancel_says_so(project: Project) -> None:
    project.plan({"x": 1})
    assert "No job of grid tiny is running or waiting" in project.dora("grid", "tiny", "-C")
    assert project.jobs() == []


@pytest.mark.slow
def test_a_failure_is_retried_when_asked(project: Project) -> None:
    project.plan({"x": 1, "fail": "mended"})
    project.grid()
    assert project.wait() == ["FAI"]
    assert "failing as I was told" in project.dora("grid", "tiny", "--no_monitoring", "-l", "0")
    (project.folder / "mended").touch()
    assert project.grid() == ["FAI"]
    project.grid("-r")
    assert project.wait() == ["COM"] and len(project.jobs()) == 2


@pytest.mark.slow
def test_replace_running_and_replace_done(project: Project) -> None:
    project.plan({"x": 1, "hold": "go"})
    project.grid()
    epoch_of(project)
    first = task_pid(project)
    project.grid("-R")
    assert [job.state() for job in project.jobs()] == ["CANCELLED", RUNNING] and not is_running(first)
    (project.folder / "go").touch()
    assert project.wait() == ["COM"]
    assert project.grid("-R") == ["COM"] and len(project.jobs()) == 2
    project.grid("-D")
    assert project.wait() == ["COM"] and len(project.jobs()) == 3


@pytest.mark.slow
def test_clear_asks_and_starts_from_scratch(project: Project) -> None:
    project.plan({"x": 1, "hold": "go"})
    project.grid()
    epoch_of(project)
    first = task_pid(project)
    project.grid("--clear", answer="n\n", code=1)
    assert is_running(first) and len(project.jobs()) == 1
    (project.folder / "go").touch()
    project.wait()
    project.grid("--clear", answer="y\n")
    assert project.wait() == ["COM"]
    assert task_pid(project) != first and "resuming from 0" in project.dora("grid", "tiny", "--dry_run", "-l", "0")


def test_an_experiment_that_leaves_the_grid_is_cancelled(project: Project) -> None:
    project.plan({"x": 1, "hold": "go"}, {"x": 2, "hold": "go"})
    project.grid()
    epoch_of(project, 2)
    project.plan({"x": 2, "hold": "go"})
    assert project.grid() == ["RUN"]
    assert [job.state() for job in project.jobs()] == ["CANCELLED", RUNNING]


def test_ctrl_c_on_the_table_and_the_end_of_its_terminal_leave_the_jobs(project: Project) -> None:
    project.plan({"x": 1, "hold": "go"})
    table = project.start("grid", "tiny", "-i", "0.1")
    epoch_of(project)
    assert table.stdout is not None
    text = ""
    while "Next update" not in text:
        text += table.stdout.read(20)
    os.killpg(table.pid, signal.SIGINT)
    text = table.communicate(timeout=30)[0]
    assert table.returncode == 130 and "the jobs go on" in text and "Traceback" not in text
    second = project.start("grid", "tiny", "-i", "0.1")
    wait_for(lambda: (project.home / "local" / "grids" / "tiny.lock").exists())
    os.killpg(second.pid, signal.SIGHUP)
    second.communicate(timeout=30)
    assert is_running(task_pid(project)) and [job.state() for job in project.jobs()] == [RUNNING]
    (project.folder / "go").touch()
    assert project.wait() == ["COM"]


@pytest.mark.slow
def test_kill_9_of_a_controller_is_a_node_failure_and_is_resumed(project: Project) -> None:
    project.plan({"x": 1, "hold": "go"})
    project.grid()
    epoch_of(project)
    (job,) = project.jobs()
    os.kill(controller_of(job), signal.SIGKILL)
    assert project.wait() == ["NOD"] and not is_running(task_pid(project))
    (project.folder / "go").touch()
    project.grid("-r")
    assert project.wait() == ["COM"]
    assert "resuming from 1" in project.dora("grid", "tiny", "--dry_run", "-l", "0")


@pytest.mark.slow
def test_a_time_limit_requeues_and_the_run_goes_on(project: Project) -> None:
    project.environment["DORA_LOCAL_MINUTE_S"] = "8"
    project.plan({"x": 1, "hold": "go"}, time=1)
    project.grid()
    (job,) = project.jobs()
    wait_for(lambda: job.log_file().exists() and "starts again" in job.log_file().read_text())
    (project.folder / "go").touch()
    assert project.wait() == ["COM"] and len(project.jobs()) == 1, "the same job, with the same id"
    log = job.log_file().read_text()
    assert "Calling checkpoint method" in log and "resuming from 1" in log


def wait_until_waiting(commands: list[subprocess.Popen[str]]) -> None:
    """Returns when each command has said that it waits for another."""
    for command in commands:
        assert command.stdout is not None
        while "waiting for it" not in (line := command.stdout.readline()):
            assert line, "it ended and did not wait"


def test_two_tables_at_once_submit_each_experiment_once(project: Project) -> None:
    project.plan(*({"x": x} for x in range(3)))
    with locks.hold(project.root / "grids" / "tiny.lock"):  # so that both are there before either schedules
        commands = [project.start("grid", "tiny", "--no_monitoring") for _ in range(2)]
        wait_until_waiting(commands)
    assert [command.wait(60) for command in commands] == [0, 0]
    assert project.wait() == ["COM"] * 3 and len(project.jobs()) == 3


def test_two_launches_at_once_submit_once(project: Project) -> None:
    with locks.hold(project.root / "submit.lock"):  # so that both have found no job before either submits
        commands = [project.start("launch", "--no_tail", "-g", "0", "--", "--x=1", "--hold=go") for _ in range(2)]
        wait_until_waiting(commands)
    assert [command.wait(60) for command in commands] == [0, 0]
    assert len(project.jobs()) == 1


@pytest.mark.slow
def test_launch_and_info(project: Project) -> None:
    project.dora("launch", "--no_tail", "-g", "0", "--", "--x=1", "--hold=go")
    epoch_of(project)
    shown = project.dora("info", "-m", "--", "--x=1")
    assert "RUNNING" in shown and "Metrics[1]" in shown and "1_0_log.out" in shown
    assert "sid=1" in project.dora("info", "-j", "1", "-l")
    assert "Could not find" in project.dora("info", "-j", "99", code=1)
    project.dora("launch", "-C", "--", "--x=1")
    assert "CANCELLED" in project.dora("info", "--", "--x=1")


def test_the_log_of_what_was_never_submitted_is_not_there(project: Project) -> None:
    project.plan({"x": 1})
    assert "Log file does not exist" in project.dora("grid", "tiny", "--dry_run", "-l", "0", code=1)
    for flag in ("-l", "-t"):
        assert "does not exist" in project.dora("info", flag, "--", "--x=1", code=1)


def test_a_submission_that_was_killed_half_way_is_cleared_away(project: Project) -> None:
    project.plan({"x": 1, "hold": "go"})
    project.grid()
    epoch_of(project)
    first = task_pid(project)
    (job,) = project.jobs()
    (xp,) = (project.home / "xps").iterdir()
    (xp / "job.pkl").unlink()  # killed before it noted the id
    (project.home / "orphans" / job.spec.name).touch()
    project.plan({"x": 1, "hold": "go"})
    assert project.grid() == ["RUN"]
    assert [one.state() for one in project.jobs()] == ["CANCELLED", RUNNING] and not is_running(first)
    assert not list((project.home / "orphans").iterdir())


def test_dry_run_starts_nothing(project: Project) -> None:
    project.plan({"x": 1})
    assert project.grid("--dry_run") == ["N/A"] and project.jobs() == []


@pytest.mark.slow
def test_a_table_sees_to_a_queue_that_nobody_minds(project: Project) -> None:
    project.plan({"x": 1}, {"x": 2})
    project.environment["DORA_LOCAL_JOBS"] = "1"
    project.grid()
    project.wait()
    for job in project.jobs():
        assert job.state() == "COMPLETED"
    lost = project.jobs()[0]
    lost.create(lost.spec, project.environment)  # waits, as after a reboot
    assert lost.state() == PENDING
    table = project.dora("grid", "tiny", "-i", "0.01").partition("Monitoring")[2]
    # Dora draws a state and asks then whether all is done: a job that ends in between leaves "RUN" as its last word.
    assert STATES.findall(table)[-1] in ("RUN", "COM") and project.wait() == ["COM", "COM"]


@pytest.mark.parametrize(
    ("slurm", "why"),
    [({"dependents": 2}, "slurm.dependents=2 needs Slurm"), ({"gpus": 3}, "asks for 3 GPUs and this machine has 2")],
)
def test_what_this_machine_cannot_is_told_before_anything_is_written(
    project: Project, slurm: dict[str, int], why: str
) -> None:
    tool = project.folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: A'; echo 'GPU 1: A'\n")
    tool.chmod(0o755)
    project.environment["PATH"] = f"{project.folder}{os.pathsep}{os.environ['PATH']}"
    project.plan({"x": 1}, **slurm)
    text = project.dora("grid", "tiny", code=2)
    assert text.splitlines()[-1].startswith(f"error: {why}") or why in text.splitlines()[-1]
    assert "Traceback" not in text and not (project.home / "xps").exists()


@pytest.mark.slow
def test_it_is_off_where_slurm_is_and_can_be_forced(project: Project) -> None:
    project.plan({"x": 1})
    for program in ("srun", "sbatch", "sacct", "squeue", "scancel"):
        (project.folder / program).write_text("#!/bin/sh\nexit 1\n")
        (project.folder / program).chmod(0o755)
    project.environment["PATH"] = f"{project.folder}{os.pathsep}{os.environ['PATH']}"
    project.environment["DORA_LOCAL"] = ""
    project.environment["SLURM_CONF"] = str(project.folder / "slurm.conf")
    project.dora("grid", "tiny", "--no_monitoring", code=1)  # Slurm is asked, and fails
    assert not project.root.exists()
    project.environment["DORA_LOCAL"] = "1"
    project.grid()
    assert project.wait() == ["COM"]


def test_client_programs_without_a_slurm_behind_them_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from micro_musicgen.launch import install

    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.delenv(install.VARIABLE, raising=False)
    monkeypatch.setattr(install, "CONFIGS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.is_wanted(), "no srun"
    words = "sinfo: error: resolve_ctls_from_dns_srv: fatal: Could not establish a configuration source"
    for name, script in (("srun", "exit 1"), ("sinfo", f"echo '{words}' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    assert install.is_wanted(), "srun, and nothing behind it"
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexit 0\n")
    assert not install.is_wanted(), "a Slurm that answers"


@pytest.mark.slow
def test_setup_commands_come_first(project: Project) -> None:
    project.plan({"x": 1}, setup=["echo prepared by $TINY_DIR"])
    project.grid()
    assert project.wait() == ["COM"]
    assert "prepared by" in project.dora("grid", "tiny", "--dry_run", "-l", "0")


def test_the_job_is_described_for_other_programs(project: Project) -> None:
    project.plan({"x": 1})
    project.grid()
    project.wait()
    (path,) = project.home.glob("xps/*/job.json")
    assert json.loads(path.read_text())["job_id"] == "1"
    assert Path(os.readlink(project.home / "by_id" / "1")).name == path.parent.name
