"""The next-token objective: PyTorch's cross-entropy, in sums that add up."""

from __future__ import annotations

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax.core.errors import InputError
from llm_jax.engine.evaluation import means
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Both, Full, Prefix, SlidingWindow
from llm_jax.layers.tokens import Tokens
from llm_jax.models.decoder import Decoder
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.objectives.distillation import Distillation
from llm_jax.objectives.next_token import NextToken
from llm_jax.objectives.objective import check_sums, cross_entropy

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MODEL = Decoder(Embed(8, 13, dropout=0.3), Stack((Block(Attention(2, head=4), FeedForward(8)),), 1))


def batch() -> Any:
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 13, (4, 7)).astype(np.int32)
    segment = np.repeat([[0, 0, 0, 1, 1, 1, -1]], 4, 0).astype(np.int32)
    position = np.repeat([[0, 1, 2, 0, 1, 2, 0]], 4, 0).astype(np.int32)
    weight = ((segment >= 0) * draw.integers(0, 3, (4, 7))).astype(np.float32)
    return dict(
        tokens_BT=ids[:, :6],
        targets_BT=ids[:, 1:],
        weight_BT=weight[:, 1:],
        segment_BT=segment[:, :6],
        position_BT=position[:, :6],
        bytes_BT=ids[:, 1:] % 5,
    )


def test_cross_entropy_is_pytorchs():
    scores = np.random.default_rng(0).normal(size=(2, 5, 9)).astype(np.float32) * 20
    targets = np.random.default_rng(1).integers(0, 9, (2, 5)).astype(np.int32)
    wanted = torch.nn.functional.cross_entropy(torch.tensor(scores).mT, torch.tensor(targets).long(), reduction="none")
    np.testing.assert_allclose(cross_entropy(jnp.asarray(scores), jnp.asarray(targets)), wanted, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda s: cross_entropy(s, jnp.asarray(targets)).sum())(jnp.asarray(scores) + 1e4)
    assert np.isfinite(gradient).all()


def test_sums_respect_weights_and_add_up():
    params = jit(lambda key: nn.meta.unbox(MODEL.init(key, jnp.zeros((1, 2), jnp.int32)))["params"])(jax.random.key(0))
    params = jax.tree.map(lambda p: p * 5, params)
    sums = jit(lambda params, batch, key: NextToken()(MODEL, params, None, batch, key))
    whole, pieces = batch(), [{k: v[i : i + 2] for k, v in batch().items()} for i in (0, 2)]
    found = sums(params, whole, None)
    assert sorted(found) == ["bytes", "correct", "loss", "weight"]
    halves = [sums(params, piece, None) for piece in pieces]
    for name, value in found.items():
        np.testing.assert_allclose(value, halves[0][name] + halves[1][name], rtol=1e-5)

    weight = whole["weight_BT"]
    assert found["weight"] == weight.sum() and found["bytes"] == (whole["bytes_BT"] * weight).sum()
    tokens = {k: whole[f"{k}_BT"] for k in ("tokens", "segment", "position")}
    scores, _ = MODEL.apply({"params": params}, tokens["tokens"], Tokens(tokens["position"], tokens["segment"]))
    logs = torch.tensor(np.asarray(scores)).log_softmax(-1).numpy()
    chosen = np.take_along_axis(logs, whole["targets_BT"][..., None], -1)[..., 0]
    np.testing.assert_allclose(found["loss"], -(chosen * weight).sum(), rtol=1e-5)
    assert found["correct"] == ((logs.argmax(-1) == whole["targets_BT"]) * weight).sum()

    other = whole | {
        "targets_BT": np.where(weight > 0, whole["targets_BT"], 0),
        "bytes_BT": np.where(weight > 0, whole["bytes_BT"], 9),
    }
    for name, value in sums(params, other, None).items():
        assert value == found[name]
    nothing = sums(params, whole | {"weight_BT": 0 * weight}, None)
    assert all(value == 0 for value in nothing.values())


def test_targets_that_a_mask_shows_count_nothing():
    def masked(mask):
        return Decoder(MODEL.embed, Stack((Block(Attention(2, head=4, mask=mask), FeedForward(8)),), 1))

    params = nn.meta.unbox(MODEL.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    whole = batch() | {"weight_BT": np.ones((4, 6), np.float32)}
    for size, shown in ((0, 0), (1, 0), (2, 2), (3, 4)):  # of each row, whose documents begin at 0 and 3
        sums = jit(lambda params, batch, size=size: NextToken()(masked(Prefix(size)), params, None, batch, None))
        assert sums(params, whole)["weight"] == 4 * (6 - shown)
    for mask in (Full(), Both((Full(),)), Both(())):
        with pytest.raises(InputError, match=r"pattern.0.attention.mask=.* lets a token see the one to predict"):
            NextToken()(masked(mask), params, None, whole, None)
    assert (Full() & Prefix(3) & Prefix(5)).ahead() == 3 and (Full() & SlidingWindow(2)).ahead() == 0


def test_a_key_drops_and_leaves_out_what_training_does_not_need():
    params = jit(lambda key: nn.meta.unbox(MODEL.init(key, jnp.zeros((1, 2), jnp.int32)))["params"])(jax.random.key(0))
    sums = jit(lambda params, key: NextToken()(MODEL, params, None, batch(), key))
    one, two = (sums(params, jax.random.key(i)) for i in range(2))
    assert "correct" not in one and one["loss"] != two["loss"] and one["weight"] == two["weight"]


def test_smoothed_targets_are_pytorchs_and_only_in_training():
    params = jit(lambda key: nn.meta.unbox(MODEL.init(key, jnp.zeros((1, 2), jnp.int32)))["params"])(jax.random.key(0))
    model, whole = MODEL.clone(embed=MODEL.embed.clone(dropout=0.0)), batch()
    scores = model.apply({"params": params}, whole, None, method="predict")
    for smoothing in (0.0, 0.1, 0.5):
        sums = NextToken(smoothing)(model, params, None, whole, jax.random.key(0))
        losses = torch.nn.functional.cross_entropy(
            torch.tensor(np.asarray(scores)).mT, torch.tensor(whole["targets_BT"]).long(), reduction="none",
            label_smoothing=smoothing,
        )  # fmt: skip
        np.testing.assert_allclose(sums["loss"], (losses.numpy() * whole["weight_BT"]).sum(), rtol=1e-5)
        hard = torch.nn.functional.cross_entropy(
            torch.tensor(np.asarray(scores)).mT, torch.tensor(whole["targets_BT"]).long(), reduction="none"
        ).numpy()
        nats = (hard * whole["weight_BT"]).sum()
        found, size = means(sums), (whole["bytes_BT"] * whole["weight_BT"]).sum()
        assert found["perplexity"] == pytest.approx(math.exp(nats / whole["weight_BT"].sum()), rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
        assert ("cross_entropy" in found) == (smoothing > 0)
    measured, plain = (NextToken(s)(model, params, None, whole, None) for s in (0.5, 0.0))
    assert measured["loss"] == plain["loss"]


@pytest.mark.parametrize("objective", [NextToken(), Distillation(Pretrained("runs/t", MODEL))], ids=["plain", "taught"])
def test_what_is_not_to_be_written_is_refused(objective):
    """Masked tokens, pairs of which one is rejected, and sources that a decoder would not read."""
    plain = batch()
    params = nn.meta.unbox(MODEL.begin(jax.random.key(0)))
    frozen = {"pretrained": {"runs/t": params}}
    masked = {name: array for name, array in plain.items() if name != "bytes_BT"}
    labelled = {name: masked[name] for name in ("tokens_BT", "segment_BT", "position_BT")}
    for given in (masked, labelled, plain | {"margin_B": np.zeros(4, np.float32)}):
        with pytest.raises(InputError, match=r"what to write next: set data.presentation=AsIs\(\)"):
            objective(MODEL, params, frozen, given, None)
    with pytest.raises(InputError, match="a Decoder reads no sources apart from what it writes"):
        objective(MODEL, params, frozen, plain | {"source_BS": plain["tokens_BT"]}, None)


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        (None, r"the objective NextToken returned None \(NoneType\): it must return sums, a dict of scalars"),
        ({"loss": jnp.ones(())}, "the objective NextToken returned .*loss"),
        ({"loss": jnp.ones(2), "weight": jnp.ones(())}, "the objective NextToken, as 'loss', returned"),
        ({"loss": jnp.ones(()), "weight": "2"}, r"as 'weight', returned '2' \(str\)"),
    ],
)
def test_sums_are_scalars_with_a_loss_and_a_weight(sums, message):
    with pytest.raises(InputError, match=message):
        check_sums(NextToken(), sums)
    fine = {"loss": jnp.ones(()), "weight": 2.0}
    assert check_sums(NextToken(), fine) is fine
