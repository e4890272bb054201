"""The shipped Hydra tree: everything composes, builds at toy size, and says nothing that nobody reads."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import micro_musicgen.train  # noqa: F401  (registers the resolver)
from micro_musicgen import paths
from micro_musicgen.codec.builder import build_codec_model, codec_config
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.lm.builder import build_lm, lm_config, lm_spec
from micro_musicgen.lm.scales import LLAMA_SCALES, SCALES
from micro_musicgen.lm.scales import spec as scale_spec
from micro_musicgen.solvers.registry import _HOMES

CONFIG = paths.config_dir()
SOLVERS = sorted(
    f"{path.parent.name}/{path.stem}" for path in (CONFIG / "solver").glob("*/*.yaml") if path.stem != "default"
)
CODECS = sorted(path.stem for path in (CONFIG / "model" / "encodec").glob("*_32khz.yaml"))
DATA = {key: "/nowhere" for key in ("train", "valid", "evaluate", "generate")}


def composed(*overrides: str) -> DictConfig:
    data = [f"datasource.{key}={value}" for key, value in DATA.items()]
    data += ["datasource.max_sample_rate=32000", "datasource.max_channels=1"]
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("config", [*overrides, *data])


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_composes_resolves_and_is_registered(solver: str) -> None:
    cfg = composed(f"solver={solver}")
    assert cfg.solver in _HOMES
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.startswith("musicgen")])
def test_every_lm_config_builds_at_toy_size(solver: str) -> None:
    toy = (
        "transformer_lm.dim=16",
        "transformer_lm.num_heads=2",
        "transformer_lm.num_layers=1",
        "transformer_lm.card=8",
    )
    cfg = composed(f"solver={solver}", *toy)
    config = lm_config(cfg)
    model = build_lm(config, window_s=1.0)
    assert sum(p.numel() for p in model.parameters()) == lm_spec(config).num_parameters
    logits = model(torch.zeros(1, cfg.transformer_lm.n_q, 3, dtype=torch.long), [], {})
    assert logits.shape == (1, cfg.transformer_lm.n_q, 3, 8)


@pytest.mark.parametrize("scale", SCALES)
def test_scale_files_say_what_the_table_says(scale: str) -> None:
    cfg = composed("solver=musicgen/micro_32khz", f"model/lm/model_scale={scale}")
    expected = SCALES[scale]
    assert (cfg.transformer_lm.dim, cfg.transformer_lm.num_heads, cfg.transformer_lm.num_layers) == (
        expected.dim,
        expected.num_heads,
        expected.num_layers,
    )


@pytest.mark.parametrize("scale", LLAMA_SCALES)
def test_a_llama_of_every_scale_is_what_the_table_says(scale: str) -> None:
    cfg = composed("solver=musicgen/micro_32khz", "model=lm/llama_lm", f"model/lm/model_scale={scale}")
    OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert cfg.lm_model == "llama" and lm_spec(lm_config(cfg)) == scale_spec(scale, backbone="llama")
    assert cfg.transformer_lm.dropout == (0.2 if scale == "melformer" else 0)


@pytest.mark.parametrize("conditioner", sorted(path.stem for path in (CONFIG / "conditioner").glob("*.yaml")))
def test_a_llama_takes_every_conditioner(conditioner: str) -> None:
    cfg = composed("solver=musicgen/debug", "model=lm/llama_lm", f"conditioner={conditioner}")
    assert cfg.transformer_lm.dim == 32, "the solver's shape wins over the model's"
    spec = lm_spec(lm_config(cfg))
    upstreams = lm_spec(lm_config(composed("solver=musicgen/debug", f"conditioner={conditioner}")))
    assert spec.backbone == "llama"
    assert (spec.conditioning, spec.pattern) == (upstreams.conditioning, upstreams.pattern)


def test_a_llama_builds_at_toy_size() -> None:
    config = lm_config(composed("solver=musicgen/debug", "model=lm/llama_lm", "transformer_lm.num_kv_heads=1"))
    model = build_lm(config, window_s=1.0)
    assert sum(p.numel() for p in model.parameters()) == lm_spec(config).num_parameters
    assert model(torch.zeros(1, 4, 3, dtype=torch.long)).shape == (1, 4, 3, 64)


def test_a_llamas_scale_is_not_taken_for_a_transformers() -> None:
    config = lm_config(composed("solver=musicgen/micro_32khz", "model/lm/model_scale=melformer"))
    with pytest.raises(MicroMusicGenError, match="lm_model=transformer_lm has no num_kv_heads"):
        build_lm(config, window_s=1.0)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_mono_32khz_at_50_frames(codec: str) -> None:
    cfg = composed(
        "solver=compression/micro_32khz", f"model=encodec/{codec}", "seanet.n_filters=2", "seanet.dimension=8"
    )
    model = build_codec_model(codec_config(cfg))
    assert (model.sample_rate, model.channels, model.frame_rate, model.num_codebooks) == (32000, 1, 50, 4)
    codes, _ = model.eval().encode(torch.zeros(1, 1, 6400))
    assert codes.shape == (1, 4, 10)


def test_there_are_the_promised_names() -> None:
    assert {"nano_32khz", "micro_32khz", "base_32khz"} <= set(CODECS)
    assert set(SCALES) == {"nano", "tiny", "mini", "midi", "micro"}
    for task in {solver.split("/")[0] for solver in SOLVERS}:
        assert f"{task}/debug" in SOLVERS


def test_every_file_has_the_exact_package_header() -> None:
    for path in CONFIG.rglob("*.yaml"):
        if path.name != "config.yaml":
            assert path.read_text().startswith("# @package _global_\n"), path


def _leaves(config: DictConfig, above: str = "") -> Iterator[str]:
    for key in config:
        name = f"{above}{key}"
        value = config._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_missing() and len(value):
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def test_no_key_is_read_by_nobody() -> None:
    import audiocraft
    import dora
    import flashy

    sources = ""
    for package in (
        Path(__file__).parents[1] / "micro_musicgen",
        *map(Path, (*audiocraft.__path__, *dora.__path__, *flashy.__path__)),
    ):
        sources += "\n".join(path.read_text() for path in package.rglob("*.py"))
    words = set(re.findall(r"\w+", sources))
    unread = set()
    for overrides in [[f"solver={solver}"] for solver in SOLVERS] + [["solver=musicgen/debug", "model=lm/llama_lm"]]:
        for leaf in _leaves(composed(*overrides)):
            if leaf.split(".")[-1] not in words:
                unread.add(leaf)
    assert not unread


@pytest.fixture
def toy_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data home with the data set `toy`."""
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    keys = {**DATA, "max_sample_rate": 32000, "max_channels": 1}
    target = tmp_path / "dset" / "audio" / "toy.yaml"
    target.parent.mkdir(parents=True)
    target.write_text("# @package _global_\n" + OmegaConf.to_yaml({"datasource": keys}))
    return tmp_path


@pytest.mark.parametrize("every", ["never", "null"])
def test_signature_ignores_what_does_not_change_the_result(every: str, toy_home: Path) -> None:
    from micro_musicgen.train import main

    base = ["solver=musicgen/micro_32khz", "dset=audio/toy", "seed=3"]
    more = [f"generate.every={every}", "evaluate.every=never", "optim.minutes=2", "device=cpu", "num_threads=1"]
    assert main.experiment([*base, *more]).sig == main.experiment(base).sig
    assert main.experiment([*base, "optim.lr=0.5"]).sig != main.experiment(base).sig


def test_works_as_an_audiocraft_user_types_it(toy_home: Path) -> None:
    from micro_musicgen.train import main

    line = "solver=musicgen/micro_32khz model/lm/model_scale=micro conditioner=none dset=audio/toy dataset.batch_size=3"
    cfg = main.experiment(line.split()).cfg
    assert (cfg.transformer_lm.dim, cfg.dataset.batch_size, cfg.conditioners) == (2048, 3, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("solver=musicgen/huge", "solver/musicgen=huge is not there; known: debug, micro_32khz"),
        ("solver=musicgen/micro_32khz dset=audio/nope", "dset/audio=nope is not there; known: toy"),
        ("solver=musicgen/micro_32khz", "datasource.evaluate is not set; add dset=audio/NAME"),
        ("solver=musicgen/micro_32khz dset=audio/toy optim.lrr=1", "optim.lrr"),
        ("--cfg", "'--cfg' is not an override"),
    ],
)
def test_wrong_overrides_are_told_in_one_line(overrides: str, message: str, toy_home: Path) -> None:
    from micro_musicgen.train import main

    with pytest.raises(MicroMusicGenError) as caught:
        main.experiment(overrides.split())
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_mistake_leaves_the_signatures_of_later_runs_alone(toy_home: Path) -> None:
    from micro_musicgen.train import main

    right = ["solver=musicgen/micro_32khz", "dset=audio/toy", "seed=3"]
    before = main.experiment(right).sig
    with pytest.raises(MicroMusicGenError, match="is not set"):
        main.experiment(["solver=musicgen/micro_32khz"])
    assert main.experiment(right).sig == before
