"""Codebooks kept in use: k-means on known clusters, restarts of dead codes, exact resumption."""

import math
from dataclasses import asdict

import pytest
import torch

from micro_musicgen.codec.quantiser import CodebookKeeper, QuantiserConfig, kmeans, nearest
from micro_musicgen.errors import MicroMusicGenError
from micro_musicgen.upstream import audiocraft_module

CONFIG = QuantiserConfig(
    warmup=0.2,
    refit=0.3,
    commit=0.25,
    bank_vectors_per_code=64,
    bank_segment_s=1.0,
    bank_shifts=(),
    kmeans_iters=15,
    restart_every=2,
    restart_below=0.1,
    reservoir_vectors=256,
)
DIM, CARD = 6, 16


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    made = audiocraft_module("quantization").ResidualVectorQuantizer(
        dimension=DIM, n_q=3, bins=CARD, threshold_ema_dead_code=0
    )
    return made.train()


@pytest.fixture
def latents():
    return 3 + torch.randn(4000, DIM, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.2, 2, DIM)


def _generator():
    return torch.Generator().manual_seed(0)


def test_nearest_is_the_smallest_distance(latents):
    centres = latents[:7]
    indices, error = nearest(latents, centres)
    distances = torch.cdist(latents.double(), centres.double()).square()
    assert torch.equal(indices, distances.argmin(dim=1))
    assert torch.allclose(error.double(), distances.min(dim=1).values, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_finds_every_cluster_of_some_size(seed):
    generator = torch.Generator().manual_seed(seed)
    truth = 10 * torch.eye(6, 4)[:5]
    sizes = torch.tensor([1000, 500, 200, 100, 50])
    vectors = truth.repeat_interleave(sizes, 0) + 0.01 * torch.randn(int(sizes.sum()), 4, generator=generator)
    centres, counts = kmeans(vectors, 12, iterations=20, generator=generator)
    assert counts.sum() == sizes.sum()
    assert torch.cdist(truth, centres).min(dim=1).values.max() < 0.05


def test_kmeans_with_fewer_vectors_than_centres_keeps_every_vector():
    vectors = torch.eye(3)
    centres, counts = kmeans(vectors, 8, iterations=10, generator=_generator())
    assert centres.shape == (8, 3) and torch.isfinite(centres).all() and counts.sum() == 3
    assert torch.cdist(vectors, centres).min(dim=1).values.max() < 0.05


def test_kmeans_of_equal_vectors_is_finite():
    centres, _ = kmeans(torch.ones(50, 3), 4, iterations=10, generator=_generator())
    assert torch.allclose(centres, torch.ones(4, 3))


def test_fit_uses_every_code_of_every_level(quantizer, latents):
    unexplained = CodebookKeeper(quantizer, CONFIG, seed=0).fit(latents)
    codes = quantizer.eval().encode(latents.T[None])
    decoded = quantizer.decode(codes)[0].T
    variance = (latents - latents.mean(dim=0)).square().sum()
    assert unexplained == pytest.approx(float((decoded - latents).square().sum() / variance), rel=1e-3)
    for level in codes[0]:
        shares = torch.bincount(level, minlength=CARD) / level.numel()
        assert torch.special.entr(shares).sum() > 0.85 * math.log(CARD)


def test_a_fit_is_in_balance_with_the_moving_averages(quantizer, latents):
    """Training steps on the latents that were fitted leave the codebooks where they are."""
    keeper = CodebookKeeper(quantizer, CONFIG, seed=0)
    keeper.fit(latents)
    before = [codebook.embed.clone() for codebook in keeper.codebooks]
    quantizer(latents.T[None], 50)
    for old, codebook in zip(before, keeper.codebooks, strict=True):
        assert torch.allclose(old, codebook.embed, atol=0.1)


def test_dead_codes_come_back(quantizer, latents):
    keeper = CodebookKeeper(quantizer, CONFIG, seed=0)
    keeper.fit(latents)
    first = keeper.codebooks[0]
    first.embed[4:] = 1e3
    first.cluster_size[4:] = 0
    assert _entropy(quantizer, latents) < 0.55
    restarted = 0
    for step in range(60):
        clip = latents[(step * 64) % 3900 :][:64].T[None]
        quantizer(clip, 50)
        restarted += keeper.observe(clip)
    assert restarted >= CARD - 4
    assert _entropy(quantizer, latents) > 0.8


def _entropy(quantizer, latents):
    shares = torch.bincount(quantizer.encode(latents.T[None])[0, 0], minlength=CARD) / len(latents)
    return float(torch.special.entr(shares).sum()) / math.log(CARD)


def test_nothing_restarts_before_the_reservoir_is_full(quantizer, latents):
    keeper = CodebookKeeper(quantizer, CONFIG, seed=0)
    keeper.fit(latents)
    keeper.codebooks[0].cluster_size.zero_()
    assert [keeper.observe(latents[:60].T[None]) for _ in range(4)] == [0, 0, 0, 0]


def test_resumes_exactly(quantizer, latents):
    def steps(keeper, first, last):
        for step in range(first, last):
            keeper.codebooks[step % 3].cluster_size[step % CARD] = 0
            keeper.observe(latents[step * 100 :][:100].T[None])

    whole = CodebookKeeper(quantizer, CONFIG, seed=0)
    whole.fit(latents)
    start = {name: value.clone() for name, value in quantizer.state_dict().items()}
    generator = whole.state_dict()["generator"]
    steps(whole, 0, 12)
    wanted = [codebook.embed.clone() for codebook in whole.codebooks]

    quantizer.load_state_dict(start)
    first = CodebookKeeper(quantizer, CONFIG, seed=7)
    first.load_state_dict({**first.state_dict(), "generator": generator})
    steps(first, 0, 5)
    second = CodebookKeeper(quantizer, CONFIG, seed=8)
    second.load_state_dict(first.state_dict())
    steps(second, 5, 12)
    assert all(torch.equal(a, b.embed) for a, b in zip(wanted, second.codebooks, strict=True))


def test_state_dict_keys_are_upstreams(quantizer, latents):
    before = set(quantizer.state_dict())
    CodebookKeeper(quantizer, CONFIG, seed=0).fit(latents)
    assert set(quantizer.state_dict()) == before
    assert all(codebook.inited == 1 for codebook in CodebookKeeper(quantizer, CONFIG, seed=0).codebooks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 1}, "unknown key quantiser.speed"),
        ({"warmup": 0.8}, "warmup \\+ refit = 1.1 must not exceed 1"),
        ({"restart_below": 2}, "restart_below=2 must lie in"),
        ({"kmeans_iters": 0}, "kmeans_iters=0 must be 1 or more"),
        ({"commit": -1}, "commit=-1 is negative"),
        ({"bank_segment_s": 0}, "bank_segment_s=0 must be above 0"),
        ({"bank_shifts": [0.5]}, r"bank_shifts=\[0.5\] must be whole numbers"),
    ],
)
def test_bad_config_is_named(changes, message):
    with pytest.raises(MicroMusicGenError, match=message):
        QuantiserConfig.parse({**asdict(CONFIG), **changes})


def test_missing_keys_are_named_together():
    with pytest.raises(MicroMusicGenError, match="missing key quantiser.commit; .*missing key quantiser.warmup"):
        QuantiserConfig.parse({})
