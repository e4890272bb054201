"""The benches' own parts: equal weights in every engine, the form of rows and JSON, limits; nothing is timed here."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import cold_boot  # noqa: E402
import common  # noqa: E402
import hf  # noqa: E402
import limits  # noqa: E402
import peers  # noqa: E402
import plan  # noqa: E402
import plots  # noqa: E402
import pool  # noqa: E402
import size  # noqa: E402
import speed  # noqa: E402
from common import Row, Sample, aim_met, make_row  # noqa: E402
from models import MODELS, BenchModel, cached, prepared  # noqa: E402
from pool import Variant, Worker, WorkerFailure  # noqa: E402

from micro_musicgen.contracts import LMSpec  # noqa: E402
from micro_musicgen.release.load import load_release  # noqa: E402
from micro_musicgen.upstream import audiocraft_module  # noqa: E402

TOY_SHAPE = ("transformer_lm.dim=32", "transformer_lm.num_heads=2", "transformer_lm.num_layers=2")
TOY = BenchModel("toy", TOY_SHAPE, codec="nano_32khz", card=256)
TOY_TEXT = replace(TOY, name="toy_text", num_words=16)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(TOY, tmp_path_factory.mktemp("cache"))


def test_both_forms_hold_the_same_model(toy: Path) -> None:
    ours = load_release(toy / "micro")
    theirs = audiocraft_module("models").MusicGen.get_pretrained(str(toy / "audiocraft"), device="cpu")
    codes = torch.randint(256, (2, 4, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, other in zip(ours.lm.parameters(), theirs.lm.parameters(), strict=True):
            assert torch.equal(mine, other)
        logits = ours.lm(codes, [], {})
        assert torch.equal(logits, theirs.lm(codes, [], {}))
        assert torch.allclose(ours.codec.decode(codes), theirs.compression_model.decode(codes), atol=1e-6)
    assert 0.5 < logits.std() < 2, "a distribution worth sampling from"


def test_a_finished_model_is_used_again_and_a_codec_is_kept_once(tmp_path: Path, toy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*")}
    assert prepared(TOY, toy.parent) == toy
    assert {path: path.stat().st_mtime_ns for path in toy.rglob("*")} == before
    assert (toy / "micro" / "codec.safetensors").stat().st_nlink == 2
    assert not list(toy.parent.glob(".*")), "no scratch folder is left"


def test_the_key_follows_everything_that_makes_the_weights() -> None:
    others = (
        replace(TOY, seed=1),
        replace(TOY, card=128),
        replace(TOY, codec="micro_32khz"),
        replace(TOY, num_words=9),
    )
    assert len({TOY.key, *(other.key for other in others)}) == 5


@pytest.mark.skipif(not hf.is_installed(), reason="transformers is not installed")
@pytest.mark.slow
def test_transformers_gives_the_same_logits_and_the_same_greedy_codes(toy: Path) -> None:
    from peers import Transformers

    theirs, ours = Transformers(toy, device="cpu", precision="fp32"), load_release(toy / "micro")
    codes = torch.randint(256, (2, 4, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = theirs.lm(input_ids=codes.reshape(8, 20)).logits.view(2, 4, 20, 256)
        assert torch.allclose(logits, ours.lm(codes, [], {}), atol=1e-4)
        greedy = ours.lm.generate(num_samples=2, max_gen_len=30, use_sampling=False)
    assert torch.equal(theirs.codes(2, 0.6, greedy=True), greedy)
    with pytest.raises(NotImplementedError, match="ELU"):
        theirs.decode(codes)


@pytest.mark.skipif(not hf.is_installed(), reason="transformers is not installed")
@pytest.mark.slow
def test_transformers_listens_to_the_same_condition(tmp_path: Path) -> None:
    from peers import Transformers, random_condition

    folder = prepared(TOY_TEXT, tmp_path)
    theirs, ours = Transformers(folder, device="cpu", precision="fp32"), load_release(folder / "micro")
    codes = torch.randint(256, (2, 4, 20), generator=torch.Generator().manual_seed(0))
    embeddings, mask = random_condition(folder, 2)
    with torch.no_grad():
        logits = theirs.lm(input_ids=codes.reshape(8, 20), encoder_hidden_states=embeddings).logits.view(2, 4, 20, 256)
        expected = ours.lm(codes, [], {"description": (embeddings, mask)})
    assert torch.allclose(logits, expected, atol=1e-4)
    for guidance in (1.0, 3.0):
        assert theirs.codes(2, 0.3, guidance=guidance).shape == (2, 4, 15)


@pytest.mark.parametrize("engine", ["Ours", "Audiocraft"])
def test_a_conditioned_model_plays_with_guidance_on_and_off(engine: str, tmp_path: Path) -> None:
    made = getattr(peers, engine)(prepared(TOY_TEXT, tmp_path), device="cpu", precision="fp32")
    for guidance in (1.0, 3.0):
        codes = made.codes(2, 0.3, guidance=guidance)
        assert codes.shape == (2, 4, 15) and 0 <= codes.min() and codes.max() < 256


def test_transformers_names_cover_a_cross_attending_lm() -> None:
    d = 4
    state = {
        "emb.0.weight": torch.zeros(9, d),
        "linears.3.weight": torch.zeros(8, d),
        "out_norm.bias": torch.zeros(d),
        "transformer.layers.1.self_attn.in_proj_weight": torch.arange(3.0 * d * d).view(3 * d, d),
        "transformer.layers.1.cross_attention.out_proj.weight": torch.zeros(d, d),
        "transformer.layers.1.norm_cross.weight": torch.zeros(d),
        "transformer.layers.1.linear2.weight": torch.zeros(d, 4 * d),
        "condition_provider.conditioners.description.output_proj.bias": torch.zeros(d),
    }
    mapped = hf.map_lm(state)
    assert set(mapped) == {
        "model.decoder.embed_tokens.0.weight",
        "lm_heads.3.weight",
        "model.decoder.layer_norm.bias",
        *(f"model.decoder.layers.1.self_attn.{p}_proj.weight" for p in "qkv"),
        "model.decoder.layers.1.encoder_attn.out_proj.weight",
        "model.decoder.layers.1.encoder_attn_layer_norm.weight",
        "model.decoder.layers.1.fc2.weight",
    }
    assert mapped["model.decoder.layers.1.self_attn.k_proj.weight"][0, 0] == d * d


@pytest.fixture
def worker(toy: Path) -> Iterator[Worker]:
    with Worker(Variant("ours", "fp32"), toy, "cpu") as started:
        yield started


def test_a_worker_answers_survives_a_mistake_and_leaves_nothing(worker: Worker) -> None:
    answer = worker.ask("codes", batch=2, duration_s=0.2)
    assert answer["shape"] == [2, 4, 10] and answer["seconds"] > 0
    assert worker.ask("decode", batch=1, duration_s=0.2)["shape"] == [1, 1, 6400]
    assert worker.ask("first_chunk", duration_s=0.4, chunk_s=0.1)["seconds"] > 0
    with pytest.raises(WorkerFailure, match="no_such_thing"):
        worker.ask("no_such_thing")
    assert worker.ask("job", batch=1, duration_s=0.2)["peak_mb"] is not None
    process = worker._process
    assert process is not None
    worker.close()
    assert process.poll() is not None
    with pytest.raises(WorkerFailure, match="has ended"):
        worker.ask("codes", batch=1, duration_s=0.2)


def test_a_worker_that_can_not_load_says_why_and_stops_nobody(toy: Path) -> None:
    good, bad = Variant("ours", "fp32"), Variant("ours", "no_such_precision")
    with pool.workers([bad, good], toy, "cpu") as started:
        assert "no_such_precision" in str(started[bad])
        assert isinstance(started[good], Worker)
        case = plan.Case("steps_per_s_toy_b1", "toy", "codes", {"batch": 1, "duration_s": 0.2}, "steps")
        held = {good: started[good], bad: started[bad]}
        samples = speed.measure_case(case, held, "cpu", plan.Budget(2, 1.0, 0.2), speed.Clock(None), {})
    assert len(samples[case.name, good].values) == 2 and not samples[case.name, bad].values
    assert "no_such_precision" in samples[case.name, bad].failure


def test_a_process_that_fails_is_a_failure_with_its_last_words() -> None:
    assert pool.run_process([sys.executable, "-c", "pass"]) > 0
    with pytest.raises(WorkerFailure, match="alas"):
        pool.run_process([sys.executable, "-c", "raise SystemExit('alas')"])
    with pytest.raises(WorkerFailure, match="not done within"):
        pool.run_process([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.2)


def test_rows_have_medians_spread_and_ratios_that_mean_better() -> None:
    fast = make_row("job_s", Sample((2.0, 1.0, 9.0)), "s", peer="audiocraft", theirs=Sample((8.0,)), aim="ratio >= 6")
    assert (fast.value, fast.spread, fast.n, fast.peer_value, fast.ratio) == (2.0, (1.0, 9.0), 3, 8.0, 4.0)
    assert aim_met(fast) is False and aim_met(replace(fast, aim="value <= 2")) is True
    rate = make_row("rate", Sample((30.0,)), "steps/s", peer="audiocraft", theirs=Sample((10.0,)))
    assert rate.ratio == 3.0 and aim_met(rate) is None
    failed = make_row("rate", Sample(failure="not installed"), "steps/s", peer="p", theirs=Sample(failure="broke"))
    assert failed.value is None and failed.ratio is None and failed.note == "not installed; p: broke"
    assert aim_met(replace(failed, aim="ratio >= 3")) is None
    with pytest.raises(ValueError, match="ratio >= 6"):
        aim_met(replace(fast, aim="at least six"))


def test_every_planned_aim_can_be_checked_and_every_name_is_used_once() -> None:
    for quick in (True, False):
        for device in ("cpu", "cuda"):
            cases = plan.plan(quick=quick, device=device)
            names = [case.row_name(v) for case in cases for v in plan.variants_of(case)]
            assert len(names) == len(set(names))
            assert {case.model for case in cases} <= set(MODELS)
            for case in cases:
                for aim in case.aims.values():
                    aim_met(Row(name=case.name, value=1.0, unit="s", aim=aim))
    full = plan.plan(quick=False, device="cpu")
    assert [c.name for c in plan.wanted(full, "job_micro")] == ["job_micro_b10_s"]
    assert [c.name for c in plan.wanted(full, "steps_per_s_micro_b1_fp16")] == ["steps_per_s_micro_b1"]
    assert cold_boot.wanted("decode", quick=False) == []


def test_the_report_has_the_form_of_every_bench_and_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [make_row("a_s", Sample((1.0, 2.0)), "s", note="why"), make_row("b", Sample(failure="not installed"), "x")]
    facts = common.machine(device="cpu")
    path = tmp_path / "deep" / "bench.json"
    common.write_report(rows, facts, path)
    plain = json.loads(path.read_text())
    assert set(plain) == {"machine", "rows"}
    wanted = {"name", "value", "unit", "aim", "peer", "peer_value", "ratio", "spread"}
    assert wanted <= {field.name for field in fields(Row)} and all(wanted <= set(row) for row in plain["rows"])
    assert common.read_rows(path)[0] == rows
    common.print_table(rows, facts)
    printed = capsys.readouterr().out
    assert "a_s" in printed and "b: not installed" in printed


def test_limits_count_what_a_step_reads_and_computes() -> None:
    shape = LMSpec(dim=8, num_heads=2, num_layers=3, ffn_dim=32, card=16, num_codebooks=4)
    linear = 3 * (4 * 64 + 2 * 8 * 32) + 4 * 8 * 16
    cost = limits.step_cost(shape, precision="int8", rows=2, num_steps=0)
    assert (cost.bytes, cost.operations) == (linear, 2 * 2 * linear)
    assert limits.step_cost(shape, precision="fp32", rows=2, num_steps=0).bytes == 4 * linear
    crossed = replace(shape, conditioning="cross")
    more = limits.step_cost(crossed, precision="int8", rows=2, num_steps=0)
    assert more.bytes == linear + 3 * 2 * 64
    rates = {"read": {"1": 10e9, "100": 2e9}, "gemm": {"fp32": 1e12, "bf16": 1e9, "int8": None}}
    assert limits.read_rate(rates, 1) == 10e9 and limits.read_rate(rates, 1e9) == 2e9
    assert limits.read_rate(rates, 10e6) == pytest.approx(6e9)
    disturbed = {"read": {"1": 1e9, "100": 2e9}, "gemm": rates["gemm"], "copy": 1.0, "gpu": None}
    assert limits.read_rate(disturbed, 1) == 2e9
    both = limits.fastest({**rates, "copy": 2.0, "gpu": None}, disturbed)
    assert both["read"] == rates["read"] and both["copy"] == 2.0 and both["gemm"]["int8"] is None
    limit = limits.step_limit(limits.StepCost(bytes=1e6, operations=1e12), rates, "bf16")
    assert (limit.by_bytes, limit.by_operations, limit.steps_per_s, limit.binds) == (1e4, 1.0, 1.0, "FLOPs")


def test_the_size_table_counts_what_was_built() -> None:
    value = {row.name: row.value for row in size.rows()}
    assert value["parameters_micro"] == 134_246_400 and value["parameters_codec_base"] == 56_884_674
    assert value["parameters_micro_with_codec"] == 191_131_074
    assert value["parameters_small_with_codec"] == 477_256_130
    assert value["embeddings_nano"] + value["rest_nano"] == value["parameters_nano"] == 2_886_400
    assert value["size_int8_micro"] == pytest.approx(134.2)


def test_plots_are_drawn_from_rows_even_where_a_peer_is_missing(tmp_path: Path) -> None:
    rows = [
        Row(name="realtime_nano", value=30.0, unit="x realtime", peer="audiocraft", peer_value=3.0),
        Row(name="realtime_nano_transformers", value=None, unit="x realtime"),
        *(Row(name=f"steps_per_s_micro_b{b}", value=100.0 / b, unit="steps/s", peer_value=30.0 / b) for b in (1, 4)),
    ]
    drawn = plots.draw_speed(rows, common.machine(), tmp_path)
    assert [path.name for path in drawn] == ["speed.png", "batch.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert plots.draw_speed([], common.machine(), tmp_path / "none") == []
    assert plots.draw_sizes(size.rows(), tmp_path / "size.png").is_file()


@pytest.mark.parametrize("script", ["speed.py", "size.py"])
def test_help_is_there_and_loads_no_torch(script: str) -> None:
    code = f"import sys, runpy; sys.argv = ['{script}', '--help']; sys.path.insert(0, {str(BENCH)!r})\n"
    code += f"try: runpy.run_path({str(BENCH / script)!r}, run_name='__main__')\n"
    code += "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert all(option in found.stdout for option in ("--quick", "--prepare", "--json", "--device"))


def test_a_model_that_is_not_made_yet_has_a_place_of_its_own(tmp_path: Path) -> None:
    assert cached(MODELS["nano"], tmp_path) != cached(MODELS["nano_nanocodec"], tmp_path)
