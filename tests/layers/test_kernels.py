"""Attention kernels: the dense one against NumPy in float64, the chunked one against the dense one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.layers import kernels
from llm_jax.layers.chunked import Tour
from llm_jax.layers.kernels import Auto, Chunked, Cudnn, Dense, Scoring, Splash
from llm_jax.layers.masks import Both, Causal, Full, Mask, Prefix, SlidingWindow
from llm_jax.layers.positions import Alibi, Buckets
from llm_jax.layers.tokens import Tokens

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

T, K, G, H = 13, 2, 3, 8  # no multiple of any block
DENSE, CHUNKED = Dense(), Chunked(queries=7, keys=5)
MASKS = [Full(), Causal(), SlidingWindow(3), Prefix(2), Both((SlidingWindow(4), Causal())), Both()]
KEY = jax.random.key(4)


def packed() -> Tokens:
    """Two rows of documents; the second ends in padding, the first has some in the middle."""
    rows = [[(0, 6), (-1, 2), (1, 5)], [(0, 3), (1, 7), (-1, 3)]]
    segment = [[s for s, n in row for _ in range(n)] for row in rows]
    position = [[i for s, n in row for i in (range(n) if s >= 0 else [0] * n)] for row in rows]
    return Tokens(jnp.asarray(position, jnp.int32), jnp.asarray(segment, jnp.int32))


def draw(dtype=jnp.float32, slots: int = T):
    """q, k, v, T5's table and what the output's gradient will be."""
    keys = jax.random.split(jax.random.key(1), 5)
    shapes = [(2, T, K, G, H), (2, slots, K, H), (2, slots, K, H), (16, K, G), (2, T, K, G, H)]
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


BIASES = {
    "none": lambda table: None,
    "alibi": lambda table: Alibi().bias(K, G),
    "t5": lambda table: Buckets(table, True, 10),
}
tokens_of = {"packed": packed(), "alone": Tokens.of((2, T))}


def run(kernel, inputs, mask, at, *, bias="none", soft_cap=0.0, dropout=0.0, keys_at=None):
    """The output, and the gradients by q, k, v and T5's table."""
    q, k, v, table, d_o = inputs

    def attend(q, k, v, table):
        keys = at if keys_at is None else keys_at
        scoring = Scoring(
            at, keys, BIASES[bias](table), KEY if dropout else None, mask, H**-0.5, soft_cap, dropout, keys_at is None
        )
        return kernel(q, k, v, scoring)

    out, pull = jax.vjp(attend, q, k, v, table)
    return out, pull(d_o)


def compare(first, second, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.isfinite(np.asarray(a, np.float32)).all()
        scale = max(1.0, np.abs(np.asarray(b, np.float32)).max())
        np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance * scale)


@functools.partial(jit, static_argnames=("mask", "bias", "soft_cap", "dropout"))
def both(inputs, at, keys_at=None, **settings):
    return tuple(run(kernel, inputs, at=at, keys_at=keys_at, **settings) for kernel in (CHUNKED, DENSE))


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_dense_is_numpys_sum(mask):
    """Also the masks' own definition: between documents, into padding and by each rule, written out one by one."""
    at = tokens_of["packed"]
    q, k, v, *_ = (np.asarray(x, np.float64) for x in draw())
    position, segment = np.asarray(at.position_BT).tolist(), np.asarray(at.segment_BT).tolist()

    def sees(mask, i: int, j: int) -> bool:
        if isinstance(mask, Both):
            return all(sees(m, i, j) for m in mask.masks)
        if isinstance(mask, SlidingWindow):
            return j <= i < j + mask.size
        return isinstance(mask, Full) or j <= i or (isinstance(mask, Prefix) and j < mask.size)

    slopes = np.asarray(Alibi().bias(K, G).slope_KG, np.float64)
    wanted = np.zeros((2, T, K, G, H))
    for b, i, h, g in np.ndindex(2, T, K, G):
        here = [
            j for j in range(T) if segment[b][j] == segment[b][i] != -1 and sees(mask, position[b][i], position[b][j])
        ]
        if here:
            score = 4.0 * np.tanh(k[b, here, h] @ q[b, i, h, g] * H**-0.5 / 4.0)
            score -= slopes[h, g] * np.abs(position[b][i] - np.asarray(position[b])[here])
            weight = np.exp(score - score.max())
            wanted[b, i, h, g] = weight / weight.sum() @ v[b, here, h]
    found = jit(lambda inputs, at: run(DENSE, inputs, mask, at, bias="alibi", soft_cap=4.0)[0])(draw(), at)
    np.testing.assert_allclose(found, wanted, atol=3e-6)


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("at", tokens_of)
def test_chunked_is_dense_for_every_mask(mask, at):
    """With everything at once: soft cap, T5's bias and dropout."""
    chunked, dense = both(draw(), tokens_of[at], mask=mask, bias="t5", soft_cap=3.0, dropout=0.4)
    compare(chunked, dense)


@pytest.mark.parametrize("mask", [Causal(), SlidingWindow(3)], ids=str)
def test_chunked_is_dense_where_keys_come_from_a_cache(mask):
    """More slots than queries, some of them empty, and filled in no particular order."""
    order = np.random.default_rng(0).permutation(23)
    position = np.where(order < 20, order, 0).astype(np.int32)
    segment = np.where(order < 20, 0, -1).astype(np.int32)
    slots = Tokens(jnp.asarray(np.stack([position] * 2)), jnp.asarray(np.stack([segment] * 2)))
    queries = Tokens(Tokens.of((2, T)).position_BT + 7, jnp.zeros((2, T), jnp.int32))

    compare(*both(draw(slots=23), queries, slots, mask=mask, bias="alibi", dropout=0.3))


@pytest.mark.parametrize("mask", [Causal(), SlidingWindow(200)], ids=str)
def test_a_longer_row_makes_no_longer_program_and_memory_stays_far_from_t_times_s(mask):
    lines, memory = [], []
    for length in (2048, 4096):
        at = Tokens.of((1, length))
        shapes = [(1, length, 1, 1, H), (1, length, 1, H), (1, length, 1, H), (16, 1, 1), (1, length, 1, 1, H)]
        inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        lowered = jit(lambda inputs, at: run(Chunked(), inputs, mask, at, dropout=0.1)).lower(inputs, at)
        lines.append(len(lowered.as_text().splitlines()))
        used: Any = lowered.compile().memory_analysis()
        memory.append(used.temp_size_in_bytes)
    assert lines[1] == lines[0] < 1500
    assert memory[1] < 4096 * 4096 * 4 / 8


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_a_tour_visits_the_span_and_no_block_more(mask):
    """Of 13 slots, in blocks of 4 queries and up to 5 keys; a window narrower than that makes them narrower."""
    at = tokens_of["alone"]
    tour = Tour.of(Scoring(at, at, None, None, mask, 1.0, aligned=True), 4, 5)
    spans = [mask.span(start, min(start + 4, T), T) for start in range(0, T, 4)]
    assert tour.keys == min(5, max(high - low for low, high in spans))
    for number, ((first, low, count), (wanted, high)) in enumerate(zip(tour.visits, spans, strict=True)):
        assert (first, low) == (4 * number, wanted) and low + (count - 1) * tour.keys < high <= low + count * tour.keys


def test_bfloat16_is_near_float32():
    wide, half = draw(), draw(jnp.bfloat16)

    def each(wide, half, at):
        def one(kernel, inputs):
            return run(kernel, inputs, Causal(), at, bias="t5", dropout=0.2)

        return one(DENSE, wide), one(DENSE, half), one(CHUNKED, half)

    exact, dense, chunked = jit(each)(wide, half, tokens_of["packed"])
    for found in (dense, chunked):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
            assert a.dtype == jnp.bfloat16
            error = np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)
            assert error < 0.02


@pytest.mark.parametrize("kernel", [DENSE, CHUNKED], ids=str)
def test_weights_sum_to_one_and_who_sees_nothing_gets_zeros(kernel):
    q, k, v, table, d_o = draw()
    at = tokens_of["packed"]
    inputs = [q * 100, k, jnp.ones_like(v), table, d_o]  # scores of some hundreds, where a careless softmax overflows
    out, gradients = jit(lambda inputs, at: run(kernel, inputs, Causal(), at))(inputs, at)
    real = np.asarray(at.segment_BT) >= 0
    np.testing.assert_allclose(np.asarray(out)[real], 1.0, atol=1e-5)
    assert (np.asarray(out)[~real] == 0).all()
    assert all(np.isfinite(g).all() for g in gradients)
    for gradient in gradients[:3]:
        assert (np.asarray(gradient)[~real] == 0).all()


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_no_key_that_may_be_seen_lies_outside_the_span(mask):
    at = tokens_of["packed"]
    allowed = np.any(np.asarray(mask.between(at, at)), axis=0)
    for start in range(0, T, 4):
        low, high = mask.span(start, min(start + 4, T), T)
        assert 0 <= low < high <= T
        outside = np.ones(T, bool)
        outside[low:high] = False
        assert not allowed[start : start + 4, outside].any()


def test_masks_combine_and_reach():
    both = SlidingWindow(9) & Causal()
    assert both == Both((SlidingWindow(9), Causal())) and both.reach() == 9
    assert Both((SlidingWindow(9), SlidingWindow(4))).reach() == 4
    assert Both().reach() is Causal().reach() is Full().reach() is Prefix(3).reach() is None


def chosen(queries=8, dtype=jnp.bfloat16, mask: Mask = Causal(), bias=None, dropout=0.0, aligned=True):
    """What `Auto` picks, and why."""
    at = Tokens.of((1, queries))
    scoring = Scoring(at, at, bias, KEY if dropout else None, mask, 1.0, dropout=dropout, aligned=aligned)
    return Auto(few=8).choice(jnp.zeros((1, queries, 1, 1, 8), dtype), scoring)


def test_auto_takes_dense_while_scores_are_few(monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: "cpu")
    assert chosen(queries=8) == (Dense(), "8 queries are at most 8")
    assert chosen(queries=9) == (Chunked(), "9 queries are more than 8")


def test_auto_takes_the_platforms_own_kernel_where_that_takes_all(monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: "tpu")
    assert chosen() == (Splash(), "this is a tpu") == chosen(queries=900)
    assert chosen(queries=1)[0] == Dense(), "a step of generation"
    kernel, why = chosen(dropout=0.5, bias=Alibi().bias(1, 1), queries=9)
    assert kernel == Chunked() and why == "Splash does not take dropout and a bias, and 9 queries are more than 8"
    assert chosen(aligned=False)[1] == "Splash does not take a cache, and 8 queries are at most 8"
    assert chosen(aligned=False, mask=Full())[0] == Splash() and chosen(mask=Prefix(2))[0] == Dense()

    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    assert chosen() == (Cudnn(), "this is a gpu") == chosen(aligned=False) and chosen(queries=1)[0] == Dense()
    assert chosen(dtype=jnp.float32, queries=9) == (
        Chunked(), "Cudnn computes in 16 bits, and precision.compute is float32, and 9 queries are more than 8"
    )  # fmt: skip


def test_auto_says_what_it_picks_where_it_is_asked(monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: "cpu")

    def attend(x):
        return Auto(few=4)(x, x[:, :, :, 0], x[:, :, :, 0], Scoring(at, at, None, None, Causal(), 1.0))

    at = Tokens.of((1, 6))
    with kernels.choices() as said:
        jax.eval_shape(attend, jnp.zeros((1, 6, 1, 1, 8)))
    assert said == ["Auto() -> Chunked(), because 6 queries are more than 4"]


def test_platform_is_the_meshs_or_this_machines():
    here = jax.devices()[0].platform
    assert kernels.platform() == here
    with jax.set_mesh(jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:1]), ("data",))):
        assert kernels.platform() == "cpu"
    platform = ("tpu",) if hasattr(jax.sharding.AbstractDevice, "platform") else ()  # jax 0.7.2 has the kind alone
    tpu = jax.sharding.AbstractDevice("TPU v5 lite", 1, *platform)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=tpu)):
        assert kernels.platform() == "tpu"


def test_masks_that_are_bands():
    """What a band says is what the rule says."""
    at = tokens_of["alone"]
    distance = np.arange(T)[:, None] - np.arange(T)
    for mask in [*MASKS, SlidingWindow(9) & SlidingWindow(4) & Full()]:
        band = mask.band()
        assert (band is None) == isinstance(mask, Prefix)
        if band is not None:
            wanted = (distance <= band[0]) & (-distance <= band[1])
            assert np.array_equal(mask.between(at, at)[0], wanted), mask
    assert (Causal() & Prefix(2)).band() is None
