"""The wheel, built through the sdist, in an empty environment and an empty folder: no make, no checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AUDIOCRAFT = ["--no-deps", "audiocraft==1.3.0"]


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", str(out), str(ROOT), cwd=out)
    return out


@pytest.mark.slow
def test_wheel_carries_config_grids_patches_and_nothing_at_top_level(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"micro_musicgen"}
    shipped = {name for name in names if name.startswith(("micro_musicgen/config/", "micro_musicgen/patches/"))}
    for folder, pattern in (("config", "*.yaml"), ("patches", "*.py")):
        for path in (ROOT / folder).rglob(pattern):
            assert f"micro_musicgen/{path.relative_to(ROOT).as_posix()}" in shipped
    assert {f"micro_musicgen/grids/{name}.py" for name in ("__init__", "demo", "_choices")} <= set(names)
    assert "micro_musicgen/py.typed" in names


@pytest.mark.slow
def test_sdist_carries_what_the_wheel_needs(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    names = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    assert {"setup.py", "LICENSE", "config/config.yaml", "patches/__init__.py", "grids/__init__.py"} <= names


@pytest.mark.slow
def test_installed_wheel_works_from_any_folder(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    venv, work = tmp_path / "venv", tmp_path / "an empty folder, ümlaut"
    work.mkdir()
    run(sys.executable, "-m", "venv", str(venv), cwd=work)
    scripts = venv / ("Scripts" if os.name == "nt" else "bin")
    pip = [str(scripts / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    import torch

    # The torch that the tests run with: a looser requirement could fetch gigabytes of another build.
    run(*pip, f"torch=={torch.__version__.partition('+')[0]}", cwd=work)
    run(*pip, "-c", str(ROOT / "constraints.txt"), str(wheel), cwd=work)
    run(*pip, *AUDIOCRAFT, cwd=work)

    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MICRO_", "COV_"))}
    run(str(scripts / "micro-musicgen"), "doctor", cwd=work, env=env)
    script = (
        "from micro_musicgen.audio.synth import write_breaks; from pathlib import Path;"
        "write_breaks(Path('sounds'), seed=0, minutes=0.3)"
    )
    run(str(scripts / "python"), "-c", script, cwd=work, env=env)
    run(str(scripts / "micro-musicgen"), "prepare", "sounds", "--name", "toy", cwd=work, env=env)
    dora = [str(scripts / "dora"), "-P", "micro_musicgen", "run"]
    run(*dora, "solver=compression/debug", "dset=audio/toy", cwd=work, env=env)
    run(*dora, "solver=musicgen/debug", "dset=audio/toy", "compression_model_checkpoint=toy", cwd=work, env=env)
    run(str(scripts / "micro-musicgen"), "export", "toy", "--out", "release", cwd=work, env=env)
    generate = ["generate", "release", "-n", "1", "--duration", "0.5", "--out", "clips"]
    run(str(scripts / "micro-musicgen"), *generate, cwd=work, env=env)
    assert len(list((work / "clips").glob("*.wav"))) == 1
    assert (work / "micro_runs" / "xps").is_dir()
