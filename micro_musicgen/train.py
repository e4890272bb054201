"""The Dora entry: `dora -P micro_musicgen run solver=... dset=...`.

Composes the Hydra tree that ships with the package together with the data sets in the user's home, settles what
depends on the machine (device, autocast, threads), and hands the config to the solver that it names.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flashy
from dora.hydra import HydraMain, _compare_config
from dora.xp import XP, get_xp, is_xp
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from micro_musicgen import paths, storage
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.launch.install import install as install_local_queue

if TYPE_CHECKING:
    from micro_musicgen.solvers.base import Solver
    from micro_musicgen.solvers.reporting.progress import Reporter

logger = logging.getLogger(__name__)


class HomeSearchPath(SearchPathPlugin):
    """Lets Hydra find `dset/audio/NAME.yaml` in the data home, wherever the package is installed."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Adds the data home behind the package's own tree."""
        search_path.append(provider="micro_musicgen", path=f"file://{paths.home()}")


if HomeSearchPath not in Plugins.instance().discover(SearchPathPlugin):
    Plugins.instance().register(HomeSearchPath)
OmegaConf.register_new_resolver("micro_home", lambda: str(paths.runs_dir()), replace=True)


def get_solver(cfg: DictConfig, reporter: Reporter | None = None) -> Solver:
    """Gives the solver that `cfg.solver` names, built and not yet restored. Call it inside an experiment.

    Raises:
        MicroMusicGenError: an unknown solver, or a config that it cannot use.
    """
    import torch

    from micro_musicgen.solvers import solvers
    from micro_musicgen.solvers.machine import settle
    from micro_musicgen.solvers.optimise.batch_size import fill_batch

    if OmegaConf.is_missing(cfg, "solver"):
        raise MicroMusicGenError("no solver given; add solver=musicgen/micro_32khz or solver=compression/micro_32khz")
    for key in ("train", "valid"):
        if OmegaConf.is_missing(cfg.datasource, key):
            raise MicroMusicGenError("no data set given; run `micro-musicgen prepare`, then add dset=audio/NAME")
    settle(cfg)
    fill_batch(cfg, _recorded_batch(cfg) if cfg.dataset.batch_size == "auto" else None)
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(cfg.num_threads)
    solver: Solver = solvers.get(cfg.solver)(cfg, reporter)
    return solver


def _recorded_batch(cfg: DictConfig) -> tuple[int, int] | None:
    """Gives batch size and accumulation that this run found when it began, None when it begins now."""
    from micro_musicgen.solvers.optimise.batch_size import recorded_batch
    from micro_musicgen.solvers.running.runfiles import Policy, RunFiles

    state = RunFiles(Path(get_xp().folder), Policy.parse(cfg.checkpoint)).load()
    return recorded_batch(OmegaConf.create(state["config"])) if state else None


def run_xp(argv: list[str], reporter: Reporter | None = None) -> Path:
    """Gives the folder of the experiment that `argv` (Hydra overrides) describes, after running or resuming it.

    What `dora run` does, from Python: the same signature, the same folder.
    """
    from micro_musicgen.solvers.running import distributed, runlock

    xp = main.experiment(argv)
    main.init_xp(xp)
    log = Path(xp.folder) / f"solver.log.{distributed.rank()}"
    with xp.enter(), runlock.hold(Path(xp.folder)), _log_to_file(log):
        get_solver(xp.cfg, reporter).run()
    return Path(xp.folder)


@contextlib.contextmanager
def _log_to_file(path: Path) -> Iterator[None]:
    """Sends the log to a file only, so that the terminal is left to the reporter's bar."""
    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        handler.close()
        root.handlers[:] = kept
        root.setLevel(level)


class Main(HydraMain):  # type: ignore[misc]
    """Dora's view of this project, with mistakes in overrides told in one line."""

    def experiment(self, argv: Sequence[str]) -> XP:
        """Gives the experiment that the overrides `argv` describe.

        Raises:
            MicroMusicGenError: an override that is none, an unknown key or choice, or a mandatory key not given.
        """
        for argument in argv:
            if "=" not in argument:
                raise MicroMusicGenError(f"{argument!r} is not an override; write KEY=VALUE, as in dset=audio/jungle")
        self.dora.dir = paths.runs_dir()  # the home is looked up at use, as everywhere else
        try:
            return super().get_xp(argv)
        except (HydraException, OmegaConfBaseException) as error:
            raise MicroMusicGenError(_one_line(error)) from error

    def _get_delta(self, init: DictConfig, other: DictConfig) -> list[tuple[str, Any]]:
        """Gives the differences of two configs. Dora keeps the path in a default argument, where a missing key leaves
        what all later signatures of this process then begin with.
        """
        return [(".".join(found.path), found.other_value) for found in _compare_config(init, other, [])]

    def get_xp(self, argv: Sequence[str]) -> XP:
        """What Dora's commands call: `experiment`, ending the process with exit code 2 on wrong overrides."""
        try:
            return self.experiment(argv)
        except MicroMusicGenError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(error.exit_code)

    def _main(self) -> Any:
        """Runs on the config already composed. Dora would hand the run folder to Hydra as an unquoted override, which
        a space or an umlaut in its path breaks.
        """
        if not is_xp():
            return super()._main()
        xp = get_xp()
        storage.write_text(Path(xp.folder) / "config.yaml", OmegaConf.to_yaml(xp.cfg))
        return self.main(xp.cfg)


def _one_line(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    if key and "Missing mandatory value" in str(error):
        hint = "dset=audio/NAME (micro-musicgen prepare makes one)" if key.startswith("datasource") else f"{key}=VALUE"
        return f"{key} is not set; add {hint}"
    text = " ".join(str(error).split("Config search path")[0].split())
    choice = re.search(r"Could not find '([\w/.-]+)/([\w.-]+)'", text)
    if choice:
        group, name = choice.groups()
        folders = (paths.config_dir() / group, paths.home() / group)
        known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")} - {"default"})
        return f"{group}={name} is not there; known: {', '.join(known) or 'none'}"
    return text


def _run_experiment(cfg: DictConfig) -> Any:
    """Runs one experiment: the function that Dora calls."""
    flashy.setup_logging(level=str(cfg.logging.level).upper(), log_name="solver.log.{rank}")
    from micro_musicgen.solvers.running import distributed, runlock

    distributed.init()
    try:
        if cfg.show:
            return get_solver(cfg).show()
        if cfg.execute_only:
            return get_solver(cfg).run_only(cfg.execute_only)
        with runlock.hold(Path(get_xp().folder)):
            return get_solver(cfg).run()
    except MicroMusicGenError as error:
        logger.error("%s", error)
        sys.exit(error.exit_code)
    finally:
        distributed.leave()


main = Main(_run_experiment, config_name="config", config_path=str(paths.config_dir()), version_base="1.3")
main.dora.dir = paths.runs_dir()
main.dora.grid_package = "micro_musicgen.grids"
main._full_name = "micro_musicgen.train.main"  # what jobs unpickle: this object and not the function in it
install_local_queue()

if __name__ == "__main__":
    main()
