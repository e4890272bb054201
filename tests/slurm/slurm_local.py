"""A Slurm of one machine, for tests and for trying grids: no root, no systemd, no cgroups, no database.

    python tests/slurm/slurm_local.py start FOLDER     # prints the two variables to export
    python tests/slurm/slurm_local.py stop FOLDER

Needs Debian's slurmctld, slurmd, slurm-client and munge. Runs as whoever calls it and for nobody else. FOLDER needs a
short path, below one that all may pass through (munge's socket insists).
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue")
START_S, CANCEL_S = 30.0, 15.0

# Why: MinJobAge keeps finished jobs where the sacct stand-in finds them. FirstJobId makes ids differ between one
# Slurm and the next, as Dora links runs by job id. KillWait is what a cancel takes when a job ignores it.
# config_overrides lets a small machine pose as one with more cores and eight GPUs. Memory is not shared out.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.log
MailProg=/bin/true
ReturnToService=2
MinJobAge=86400
FirstJobId={first_job}
KillWait=5
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Gives the programs that a Slurm of one machine needs and that are not installed."""
    return [name for name in (*DAEMONS, *CLIENTS) if _program(name) is None]


class LocalSlurm:
    """A Slurm whose configuration, state and logs all lie in one folder. cpus, gpus: what its only node claims."""

    def __init__(self, root: Path, *, cpus: int = 4, gpus: int = 8) -> None:
        self.root = root.resolve()
        self.cpus, self.gpus = cpus, gpus

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need to have set: where it is, and its `sacct` before the system's."""
        return {
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
        }

    def start(self) -> None:
        """Starts it and waits for its node to be idle, a second or two.

        Raises:
            RuntimeError: a daemon did not come up; the message holds the ends of the logs.
        """
        self._write_files()
        munge = self.root / "munge"
        self._spawn(
            *("munged", "-F", f"--key-file={munge}/munge.key", f"--socket={munge}/munge.socket"),
            *(f"--pid-file={self.root}/run/munged.pid", f"--log-file={self.root}/log/munged.log"),
            f"--seed-file={munge}/seed",
        )
        self._wait_for(lambda: (munge / "munge.socket").exists(), "munged")
        self._spawn("slurmctld", "-D", "-c", "-f", self.environment["SLURM_CONF"])
        self._spawn("slurmd", "-D", "-f", self.environment["SLURM_CONF"])
        self._wait_for(lambda: "idle" in self.client("sinfo", "-h", "-o", "%T", check=False), "slurmd")

    def stop(self) -> None:
        """Ends its daemons and waits until they are gone. Jobs that still run are left to themselves: cancel them."""
        pids = [int(path.read_text()) for path in (self.root / "run").glob("*.pid") if path.read_text().strip()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 10
        while any(_is_alive(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(0.05)

    def client(self, *command: str, check: bool = True) -> str:
        """Gives what a Slurm client says on its standard output."""
        done = subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def __enter__(self) -> LocalSlurm:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.client("scancel", "--user", _user(), check=False)
        end = time.monotonic() + CANCEL_S
        while self.client("squeue", "-h", check=False) and time.monotonic() < end:
            time.sleep(0.1)
        self.stop()

    def _write_files(self) -> None:
        for name in ("state", "spool", "log", "run", "munge", "bin", "dev"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for folder in (self.root, self.root / "munge"):
            folder.chmod(0o755)
        key = self.root / "munge" / "munge.key"
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
        host = socket.gethostname().split(".")[0]
        ctld_port, slurmd_port = _free_ports(2)
        conf = CONF.format(
            host=host, user=_user(), root=self.root, ctld_port=ctld_port, slurmd_port=slurmd_port,
            cpus=self.cpus, gpus=self.gpus, first_job=int(time.time()) % 10_000_000,
        )  # fmt: skip
        (self.root / "slurm.conf").write_text(conf)
        # A GPU without a file counts as none. Plain files will do, and CUDA_VISIBLE_DEVICES then stays unset.
        for index in range(self.gpus):
            (self.root / "dev" / f"gpu{index}").touch()
        devices = f"NodeName={host} Name=gpu File={self.root}/dev/gpu[0-{self.gpus - 1}]\n"
        (self.root / "gres.conf").write_text(devices)
        sacct = self.root / "bin" / "sacct"
        stand_in = Path(__file__).with_name("sacct_stand_in.py").resolve()
        sacct.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{stand_in}" "$@"\n')
        sacct.chmod(0o755)

    def _spawn(self, name: str, *arguments: str) -> None:
        program = _program(name)
        if program is None:
            raise RuntimeError(f"{name} is not installed")
        with open(self.root / "log" / f"{name}.out", "wb") as out:
            subprocess.Popen(
                (program, *arguments),
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_for(self, ready: object, what: str) -> None:
        assert callable(ready)
        end = time.monotonic() + START_S
        while not ready():
            if time.monotonic() > end:
                ends = [f"{path.name}: {path.read_text()[-800:]}" for path in (self.root / "log").glob("*")]
                self.stop()
                raise RuntimeError(f"{what} did not come up in {START_S:g} s\n" + "\n".join(ends))
            time.sleep(0.05)


def _user() -> str:
    """Gives the name of whoever calls. $USER may still be somebody else's."""
    return pwd.getpwuid(os.geteuid()).pw_name


def _program(name: str) -> str | None:
    """Gives a program's path. Debian keeps daemons where a user's PATH does not look."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _is_alive(pid: int) -> bool:
    """Says whether a process runs. A daemon that nobody waits for stays a zombie, and that is not running."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "\nState:\tZ" not in status


def _free_ports(count: int) -> list[int]:
    """Gives ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


def main() -> int:
    """Starts or stops the Slurm in a folder."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.stderr.write(f"usage: {sys.argv[0]} start|stop FOLDER\n")
        return 2
    slurm = LocalSlurm(Path(sys.argv[2]))
    if sys.argv[1] == "stop":
        slurm.stop()
        return 0
    absent = missing()
    if absent:
        sys.stderr.write(f"error: {', '.join(absent)} not installed; install slurmctld slurmd slurm-client munge\n")
        return 2
    slurm.start()
    print(f'export SLURM_CONF={slurm.environment["SLURM_CONF"]} PATH={slurm.root / "bin"}:"$PATH"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
