"""Every objective that reads layers hears what their routers say: an even router's losses are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from llm_jax.core.dims import Fill
from llm_jax.engine.gradients import gradients, related
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.masks import Full
from llm_jax.layers.moe import MoE
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier, Scorer
from llm_jax.models.stack import Stack
from llm_jax.objectives.classification import Classification
from llm_jax.objectives.contrastive import Contrastive
from llm_jax.objectives.policy import Dapo, Grpo, Reinforce
from llm_jax.objectives.ppo import Ppo

B, T, WORDS, EXPERTS = 4, 5, 11, 4
RNG = np.random.default_rng(0)
EVEN = 0.1 + 0.01 * math.log(EXPERTS) ** 2  # of the balance, which is 1, and of the router's z


def block(init: Any = Fill(0.0), **attention: Any) -> Stack:
    mixture = MoE(8, experts=EXPERTS, balance=0.1, z=0.01, router_init=init)
    return Stack((Block(Attention(1, 1, 8, **attention), mixture),), 1)


def read(axes: str = "BT", before: str = "") -> dict[str, Any]:
    """The last row is padding."""
    segment = np.zeros((B, T), np.int32)
    segment[-1] = -1
    tokens, position = RNG.integers(0, WORDS, (B, T)).astype(np.int32), np.broadcast_to(np.arange(T), (B, T))
    return {f"{before}segment_{axes}": segment, f"{before}position_{axes}": position.astype(np.int32)} | {
        f"source_{axes}" if before else f"tokens_{axes}": tokens
    }


TWO = read() | read("BS", "source_")
DRAWN = read() | {
    f"{name}_BT": RNG.normal(size=(B, T)).astype(np.float32)
    for name in ("old", "reference", "value", "advantage", "return")
}
DRAWN |= dict(targets_BT=DRAWN["tokens_BT"], weight_BT=(DRAWN["segment_BT"] == 0).astype(np.float32))
DRAWN |= {name: np.ones(B, np.float32) for name in ("reward_B", "reward_spread_B", "ended_B", "kl_coefficient_B")}
ENCODER, DECODER = Encoder(Embed(8, WORDS), block(mask=Full())), Decoder(Embed(8, WORDS), block())
POLICY = dict(allowed_V=np.ones(WORDS, bool), temperature=np.float32(1), max_tokens=np.float32(T), reference={})
CASES: list[Any] = [
    (Classification(), Classifier(ENCODER, 3), read() | dict(label_B=np.array([0, 2, 1, -1], np.int32)), None, 1),
    (Contrastive(), ENCODER, TWO, None, 1),
    (Ppo(), ActorCritic(DECODER, Scorer(DECODER)), DRAWN, POLICY, 2),  # a router each
    *((objective, DECODER, DRAWN, POLICY, 1) for objective in (Grpo(), Dapo(), Reinforce())),
]


@pytest.mark.parametrize(
    ("objective", "model", "batch", "frozen", "routers"), CASES, ids=[type(case[0]).__name__ for case in CASES]
)
def test_the_routers_losses_are_heard(objective, model, batch, frozen, routers):
    params = nn.meta.unbox(model.begin(jax.random.key(0)))
    for key in (None, jax.random.key(1)):
        sums = objective(model, params, frozen, batch, key)
        np.testing.assert_allclose(sums["auxiliary"] / sums["weight"], routers * EVEN, rtol=1e-4)
        np.testing.assert_allclose(sums["router_z"] / sums["weight"], math.log(EXPERTS) ** 2, rtol=1e-4)


def test_the_pieces_of_a_contrastive_step_train_the_router_as_the_whole_does():
    model: Any = Encoder(Embed(8, WORDS), block(Fill(0.3), mask=Full()))
    params = nn.meta.unbox(model.begin(jax.random.key(0)))
    params["stack"] = jax.tree.map(
        lambda x: x + 0.3 * RNG.normal(size=x.shape).astype(np.float32), params["stack"]
    )  # fmt: skip
    objective, key = Contrastive(), jax.random.key(1)
    whole, _ = gradients(lambda p, batch, key: objective(model, p, None, batch, key), params, TWO, key, 1)
    parts, _ = related(
        lambda p, piece, key: objective.represent(model, p, None, piece, key), objective.relate, params, TWO, key, 2
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), parts, whole)
    quiet = model.clone(
        stack=Stack((Block(Attention(1, 1, 8, Full()), MoE(8, experts=EXPERTS, balance=0.0, z=0.0)),), 1)
    )
    without, _ = gradients(lambda p, batch, key: objective(quiet, p, None, batch, key), params, TWO, key, 1)
    router = whole["stack"]["layers"]["block_0"]["ffn"]["router"]["kernel"]
    assert np.abs(router - without["stack"]["layers"]["block_0"]["ffn"]["router"]["kernel"]).max() > 0.01
