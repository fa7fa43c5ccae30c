"""Position encodings against the papers' formulas and Hugging Face's code."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

from llm_jax.core.errors import InputError
from llm_jax.layers.positions import (
    Alibi,
    Buckets,
    Learned,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NtkScaling,
    RelativeBias,
    Rope,
    Sinusoidal,
    YarnScaling,
    _frequencies,
)
from llm_jax.layers.tokens import Tokens


def theirs(kind: str, theta: float, head: int, **settings) -> tuple[np.ndarray, float]:
    """Hugging Face's inverse frequencies and the factor on queries and keys."""
    rope = {"rope_type": kind, "rope_theta": theta, **settings}
    config = LlamaConfig(
        hidden_size=4 * head, num_attention_heads=4, max_position_embeddings=32768, rope_parameters=rope
    )
    if kind == "default":
        return theta ** (-np.arange(0, head, 2) / head), 1.0
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return frequencies.numpy(), magnitude


SHORT = tuple(1.0 + 0.05 * wave for wave in range(32))
SCALED = [
    (None, "default", {}),
    (LinearScaling(4.0), "linear", dict(factor=4.0)),
    (YarnScaling(8.0, original=4096), "yarn", dict(factor=8.0, original_max_position_embeddings=4096)),
    (
        YarnScaling(4.0, original=1024, fast=16.0, slow=2.0),
        "yarn",
        dict(factor=4.0, original_max_position_embeddings=1024, beta_fast=16.0, beta_slow=2.0),
    ),
    (YarnScaling(1.0), "yarn", dict(factor=1.0, original_max_position_embeddings=4096)),
    (
        Llama3Scaling(),
        "llama3",
        dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192),
    ),
    (
        Llama3Scaling(32.0, low=2.0, high=8.0, original=2048),
        "llama3",
        dict(factor=32.0, low_freq_factor=2.0, high_freq_factor=8.0, original_max_position_embeddings=2048),
    ),
    (
        LongRopeScaling(8.0, original=4096, short=SHORT),
        "longrope",
        dict(factor=8.0, original_max_position_embeddings=4096, short_factor=[*SHORT], long_factor=[9.0] * 32),
    ),
]


@pytest.mark.parametrize(("scaling", "kind", "settings"), SCALED)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rope_turns_as_hugging_faces(scaling, kind, settings, theta):
    head = 64
    frequencies, magnitude = theirs(kind, theta, head, **settings)
    if scaling is not None:
        ours = scaling.apply(_frequencies(head, theta), theta, head)
        np.testing.assert_allclose(ours, frequencies, rtol=2e-6)
        assert scaling.magnitude() == pytest.approx(magnitude, rel=1e-12)
    generator = np.random.default_rng(0)
    q_BTNH, k_BTNH = generator.normal(size=(2, 2, 33, 4, head)).astype(np.float32)
    position_BT = np.stack([np.arange(33), np.arange(33) + 70]).astype(np.int32)
    angle = torch.tensor(position_BT[..., None] * frequencies).float()
    waves = [magnitude * f(torch.cat([angle, angle], -1)) for f in (torch.cos, torch.sin)]
    wanted = apply_rotary_pos_emb(torch.tensor(q_BTNH), torch.tensor(k_BTNH), *waves, unsqueeze_dim=2)
    rope, at = Rope(theta, scaling), Tokens(jnp.asarray(position_BT), jnp.zeros((2, 33), jnp.int32))
    turn = jax.jit(lambda x: rope.rotate(x, at))
    np.testing.assert_allclose(turn(q_BTNH), wanted[0], atol=5e-5)
    np.testing.assert_allclose(turn(k_BTNH.reshape(2, 33, 2, 2, head)).reshape(k_BTNH.shape), wanted[1], atol=5e-5)


def test_long_rope_has_a_number_for_each_wave():
    with pytest.raises(InputError, match=r"LongRopeScaling\.short has 32 numbers for 4 waves"):
        LongRopeScaling(short=SHORT).apply(_frequencies(8, 10_000.0), 10_000.0, 8)


def test_ntk_scaling_is_a_larger_base():
    for width, factor in ((64, 4.0), (128, 8.0)):
        base = 10_000.0 * factor ** (width / (width - 2))  # bloc97's formula
        wanted = base ** -(np.arange(0, width, 2, dtype=np.float64) / width)
        found = NtkScaling(factor).apply(_frequencies(width, 10_000.0), 10_000.0, width)
        np.testing.assert_allclose(found, wanted, rtol=2e-6)
        np.testing.assert_allclose(
            found[-1] * factor, 10_000.0 ** (-(width - 2) / width), rtol=2e-6
        )  # the slowest wave


def test_part_of_the_head_turns():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 2, 32)), jnp.float32)
    at = Tokens.of((1, 5))
    found = Rope(share=0.25).rotate(x, at)
    np.testing.assert_array_equal(found[..., 8:], x[..., 8:])
    np.testing.assert_allclose(found[..., :8], Rope().rotate(x[..., :8], at), atol=1e-6)


@pytest.mark.parametrize("scaling", [s for s, _, _ in SCALED])
def test_rope_scores_depend_on_distance_alone(scaling):
    q, k = np.random.default_rng(1).normal(size=(2, 1, 1, 1, 64)).astype(np.float32)

    @jax.jit
    def score(i, j):
        def at(p):
            return Tokens(p.reshape(1, 1), jnp.zeros((1, 1), jnp.int32))

        rope = Rope(scaling=scaling)
        return (rope.rotate(q, at(i)) * rope.rotate(k, at(j))).sum()

    for distance in (0, 1, 7, 100):
        near, far = score(jnp.int32(distance), jnp.int32(0)), score(jnp.int32(distance + 900), jnp.int32(900))
        assert float(near) == pytest.approx(float(far), abs=2e-3)


def test_odd_widths_are_refused():
    with pytest.raises(InputError, match="must be even, not 7"):
        Rope().rotate(jnp.zeros((1, 2, 1, 7)), Tokens.of((1, 2)))


def test_sinusoidal_is_the_papers_formula():
    position, width = np.array([[0, 1, 2, 50, 511]]), 12
    found = Sinusoidal().embed(
        jnp.zeros((1, 5, width)), Tokens(jnp.asarray(position, jnp.int32), jnp.zeros((1, 5), jnp.int32))
    )
    for pair in range(width // 2):
        angle = position / 10000 ** (2 * pair / width)
        np.testing.assert_allclose(found[..., pair], np.sin(angle), atol=1e-4)
        np.testing.assert_allclose(found[..., width // 2 + pair], np.cos(angle), atol=1e-4)


def get_slopes(n: int) -> list[float]:
    """As published: github.com/ofirpress/attention_with_linear_biases."""

    def of_power(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(n).is_integer():
        return of_power(n)
    closest = 2 ** math.floor(math.log2(n))
    return of_power(closest) + get_slopes(2 * closest)[0::2][: n - closest]


@pytest.mark.parametrize("heads", range(1, 18))
def test_alibi_slopes_are_the_papers(heads):
    slope_KG = Alibi().bias(heads, 1).slope_KG
    np.testing.assert_allclose(slope_KG[:, 0], get_slopes(heads), rtol=1e-6)
    if heads % 2 == 0:
        np.testing.assert_array_equal(Alibi().bias(heads // 2, 2).slope_KG.reshape(-1), slope_KG[:, 0])


def test_alibi_falls_with_distance():
    score = Alibi().bias(2, 1).between(Tokens.of((1, 6)), Tokens.of((1, 4)))
    assert score.shape == (1, 2, 1, 6, 4)
    np.testing.assert_allclose(
        score[0, 1, 0], -(2.0**-8) * np.abs(np.arange(6)[:, None] - np.arange(4)[None]), rtol=1e-6
    )


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 64), (8, 20)])
def test_buckets_are_t5s(both_ways, buckets, farthest):
    numbers = jnp.arange(buckets, dtype=jnp.float32).reshape(buckets, 1, 1)  # the score tells the bucket
    table = Buckets(numbers, both_ways, farthest)
    zero = jnp.zeros((1, 1), jnp.int32)
    offset = np.arange(-300, 301)

    @jax.jit
    def score(position_BT):
        return table.between(Tokens(zero + 300, zero), Tokens(position_BT, jnp.zeros_like(position_BT)))

    found = score(jnp.asarray(offset[None] + 300, jnp.int32)).reshape(-1)
    wanted = T5Attention._relative_position_bucket(torch.tensor(offset), both_ways, buckets, farthest)
    np.testing.assert_array_equal(found, wanted.numpy())


def test_relative_bias_is_one_table_of_scores():
    positions = RelativeBias(buckets=8)
    made: Any = nn.init(lambda m: m.bias(2, 3).between(Tokens.of((1, 4)), Tokens.of((1, 4))), positions)(
        jax.random.key(0)
    )
    assert made["params"]["table"].letters == "PKG" and made["params"]["table"].value.shape == (8, 2, 3)


def test_learned_has_a_vector_a_position():
    x, at = jnp.zeros((1, 3, 4)), Tokens(jnp.asarray([[2, 0, 2]], jnp.int32), jnp.zeros((1, 3), jnp.int32))
    begin: Any = nn.init(lambda m, x, at: m.embed(x, at), Learned(length=3))
    table_PD = begin(jax.random.key(0), x, at)["params"]["table"].value
    found = nn.apply(lambda m: m.embed(x, at), Learned(length=3))({"params": {"table": table_PD}})
    np.testing.assert_array_equal(found[0], table_PD[np.array([2, 0, 2])])
    with pytest.raises(InputError, match=r"4 tokens, but Learned\(length=3\)"):
        begin(jax.random.key(0), jnp.zeros((1, 4, 4)), Tokens.of((1, 4)))
    assert Learned(length=3).limit() == 3 and Rope().limit() is None
