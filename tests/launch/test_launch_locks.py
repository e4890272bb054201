"""Locks end with their holder, and with no later process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from local_queue import wait_for

from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.launch import locks

HOLDS = """
import os, sys, time
from pathlib import Path
from micro_musicgen.launch import locks
locks.acquire(Path(sys.argv[1]), shared_with_children=sys.argv[2] == "shared")
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(60)
"""


def test_a_lock_is_held_until_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    assert not locks.is_held(path)
    with locks.hold(path):
        assert locks.is_held(path) and locks.is_held(path)
    assert not locks.is_held(path)


@pytest.mark.parametrize(("kind", "held"), [("private", False), ("shared", True)])
def test_a_killed_holder_leaves_it_to_its_children_only_when_shared(tmp_path: Path, kind: str, held: bool) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(path), kind], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        assert locks.is_held(path)
        holder.kill()
        holder.wait()
        try:
            if held:
                assert locks.is_held(path)
            else:
                wait_for(lambda: not locks.is_held(path))
        finally:
            os.kill(child, 9)
    wait_for(lambda: not locks.is_held(path))


def test_who_waits_says_so_and_who_does_not_does_not(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from micro_musicgen.launch import locks\n"
    code += "with locks.hold(Path(sys.argv[1]), 'waiting'): print('mine')"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    with locks.hold(tmp_path / "lock"):
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None and second.stderr.readline() == "waiting\n"
    assert second.communicate(timeout=30)[0] == "mine\n"
    third = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (third.stdout, third.stderr) == ("mine\n", "")


def test_a_system_without_file_locks_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    locks.require()
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.raises(MicroMusicGenError, match="need file locks .* use WSL, or run .* with dora run") as told:
        locks.require()
    assert "\n" not in str(told.value)
