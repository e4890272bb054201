"""`dora grid` on a real Slurm of one machine, and the same grids without one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from slurm_lab import Lab, wait_for
from slurm_local import LocalSlurm
from solver_runs import losses

pytestmark = pytest.mark.slurm
EVERY_3_S = ("-i", "0.05")


def test_a_grid_runs_to_its_end_and_one_job_of_it_has_two_tasks(lab: Lab, slurm: LocalSlurm) -> None:
    rows = lab.grid("three", *EVERY_3_S)
    assert [row.state for row in rows] == ["COM"] * 3
    assert [len(lab.history(row)) for row in rows] == [2, 2, 2]
    two_tasks = slurm.client("scontrol", "-o", "show", "job", rows[2].job_id)
    assert re.search(r"TresPerNode=gres:gpu:2\b", two_tasks)
    submitit = lab.home / "xps" / rows[2].sig / "submitit"
    assert [path.name for path in sorted(submitit.glob("*_log.out"))] == [
        f"{rows[2].job_id}_{task}_log.out" for task in (0, 1)
    ]
    # Two processes halve the batch between them, so they learn what one does.
    assert rows[2].learnt == rows[0].learnt


def test_the_same_grid_gives_the_same_table_without_slurm(lab: Lab, slurm: LocalSlurm, tmp_path: Path) -> None:
    if find_spec("micro_musicgen.launch") is None:
        pytest.skip("no local executor in this version")
    print("on Slurm")
    on_slurm = lab.grid("three", *EVERY_3_S)
    print("on this machine")
    local = lab.elsewhere(tmp_path / "home", {"DORA_LOCAL": "1", "DORA_LOCAL_JOBS": "2"})
    here = local.grid("three", *EVERY_3_S)
    for ours, theirs in zip(here, on_slurm, strict=True):
        assert (ours.name, ours.state, ours.sig) == (theirs.name, theirs.state, theirs.sig)
        assert (ours.model, ours.learnt) == (theirs.model, theirs.learnt)
        assert losses(local.history(ours)) == losses(lab.history(theirs))


def test_cancel_ends_the_job_and_keeps_the_run(lab: Lab, slurm: LocalSlurm) -> None:
    (row,) = lab.grid("cancelled", "--no_monitoring")
    wait_for(lambda: lab.history(row), "a first epoch")
    lab.dora("grid", "cancelled", "-C")
    wait_for(lambda: "JobState=CANCELLED" in slurm.client("scontrol", "show", "job", row.job_id), "the cancel")
    (row,) = lab.grid("cancelled", "--no_monitoring", "--dry_run")
    assert row.state == "CAN"
    assert slurm.client("squeue", "-h", "-j", row.job_id, check=False) == ""
    assert (lab.home / "xps" / row.sig / "checkpoint.th").is_file()


def test_a_preempted_job_is_requeued_and_ends_as_if_nothing_had_happened(lab: Lab, slurm: LocalSlurm) -> None:
    unbroken, preempted = lab.grid("preempted", "--no_monitoring")
    wait_for(lambda: len(lab.history(preempted)) >= 2, "two epochs")
    slurm.client("scancel", "--signal=USR2", preempted.job_id)

    def job() -> str:
        return slurm.client("scontrol", "-o", "show", "job", preempted.job_id)

    wait_for(lambda: "JobState=PENDING" in job() and "Restarts=1 " in job(), "the requeue")
    assert 2 <= len(lab.history(preempted)) < 20
    # Slurm holds a requeued job back for two minutes.
    slurm.client("scontrol", "update", f"JobId={preempted.job_id}", "StartTime=now")
    rows = lab.grid("preempted", *EVERY_3_S)
    assert [row.state for row in rows] == ["COM", "COM"]
    assert rows[1].job_id == preempted.job_id
    assert "resuming" in lab.dora("grid", "preempted", "-l", "1")
    assert losses(lab.history(preempted)) == losses(lab.history(unbroken))
    assert len(lab.history(preempted)) == 20


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="drops root's rights, so it needs them")
def test_slurm_itself_needs_no_root(slurm: LocalSlurm) -> None:
    python, user = shutil.which("python3", path="/usr/bin"), "nobody"
    if python is None or shutil.which("runuser") is None:
        pytest.skip("needs a python3 and runuser that everybody may run")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        root = Path(name)
        for source in ("slurm_local.py", "sacct_stand_in.py"):
            shutil.copy(Path(__file__).with_name(source), root)
        shutil.chown(root, user)
        root.chmod(0o755)

        def as_nobody(*command: str) -> str:
            environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
            done = subprocess.run(
                ("runuser", "-u", user, "--", *command), env=environment, cwd="/", capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        as_nobody(python, "-B", str(root / "slurm_local.py"), "start", str(root))
        try:
            assert f"({user})" in as_nobody("srun", "id")
        finally:
            as_nobody(python, "-B", str(root / "slurm_local.py"), "stop", str(root))
