"""Distillation: PyTorch's kl_div in both directions, nothing to learn from oneself, and the run that teaches."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax.core.errors import InputError
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.models.decoder import Decoder
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.objectives.distillation import Distillation
from llm_jax.objectives.next_token import NextToken

WORDS, SHAPE = 11, (3, 6)


def decoder(width: int, words: int = WORDS) -> Decoder:
    return Decoder(Embed(width, words), Stack((Block(Attention(2, head=4), FeedForward(8)),), 1))


def drawn(model: Decoder, seed: int) -> Any:
    params = nn.meta.unbox(model.init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32)))["params"]
    return jax.tree.map(lambda p: p * 4, params)


RNG = np.random.default_rng(0)
BATCH: Any = dict(
    tokens_BT=RNG.integers(0, WORDS, SHAPE).astype(np.int32),
    targets_BT=RNG.integers(0, WORDS, SHAPE).astype(np.int32),
    weight_BT=RNG.integers(0, 3, SHAPE).astype(np.float32),
    segment_BT=np.zeros(SHAPE, np.int32),
    position_BT=np.broadcast_to(np.arange(6, dtype=np.int32), SHAPE),
    bytes_BT=np.ones(SHAPE, np.int32),
)
STUDENT, TEACHER = decoder(8), decoder(12)
PARAMS, FROZEN = drawn(STUDENT, 0), {"pretrained": {"runs/t": drawn(TEACHER, 1)}}


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0.0), (3.0, 0.25)])
def test_the_divergence_is_pytorchs(direction, temperature, hard):
    objective = Distillation(Pretrained("runs/t", TEACHER), direction, temperature, hard)
    scored = jnp.asarray(_scores(STUDENT, PARAMS))
    (loss, told), gradient = jax.jit(jax.value_and_grad(lambda s: _of_scores(objective, s), has_aux=True))(scored)
    ours = torch.tensor(np.asarray(_scores(STUDENT, PARAMS), np.float64), requires_grad=True)
    taught = torch.tensor(np.asarray(_scores(TEACHER, FROZEN["pretrained"]["runs/t"]), np.float64))
    weight, target = torch.tensor(BATCH["weight_BT"]).double(), torch.tensor(BATCH["targets_BT"]).long()

    def divergence(temperature: float) -> torch.Tensor:
        logs, other = (ours / temperature).log_softmax(-1), (taught / temperature).log_softmax(-1)
        pair = (logs, other) if direction == "forward" else (other, logs)
        return torch.nn.functional.kl_div(*pair, log_target=True, reduction="none").sum(-1)

    nll = torch.nn.functional.cross_entropy(ours.mT, target, reduction="none")
    wanted = ((hard * nll + (1 - hard) * temperature**2 * divergence(temperature)) * weight).sum()
    (slope,) = torch.autograd.grad(wanted, ours, retain_graph=True)
    np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, slope.numpy(), atol=1e-5)
    np.testing.assert_allclose(told["kl"], (divergence(1.0) * weight).sum().item(), rtol=1e-5)
    np.testing.assert_allclose(told["cross_entropy"], (nll * weight).sum().item(), rtol=1e-5)


def _scores(model: Decoder, params: Any) -> Any:
    return model.apply({"params": params}, BATCH, None, method="predict")


class Told(Decoder):
    """Says the scores that it is given as its parameters."""

    def predict(self, batch, dropout_key):
        return self.scope.get_variable("params", "score")  # pyright: ignore


def _of_scores(objective: Distillation, score_BTV: Any) -> Any:
    model = Told(STUDENT.embed, STUDENT.stack)
    sums = objective(model, {"score": score_BTV}, FROZEN, BATCH, jax.random.key(0))
    return sums["loss"], sums


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_nothing_is_learnt_from_oneself(direction):
    objective, frozen = Distillation(Pretrained("runs/t", STUDENT), direction), {"pretrained": {"runs/t": PARAMS}}

    def loss(params):
        sums = objective(STUDENT, params, frozen, BATCH, None)
        return sums["loss"], sums

    (value, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS)
    assert abs(float(value)) < 1e-5 and max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-4
    plain = NextToken()(STUDENT, PARAMS, None, BATCH, None)
    np.testing.assert_allclose(sums["cross_entropy"], plain["loss"], rtol=1e-5)
    assert sums["correct"] == plain["correct"] and set(sums) == {"weight", "loss", "kl", "cross_entropy", "correct"}


def test_the_teacher_is_not_trained_and_has_the_same_words():
    objective = Distillation(Pretrained("runs/t", TEACHER))
    slope = jax.grad(lambda frozen: objective(STUDENT, PARAMS, frozen, BATCH, None)["loss"])(FROZEN)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(slope))
    with pytest.raises(InputError, match="the model has 11 words and its teacher 13: they cannot be compared"):
        Distillation(Pretrained("runs/t", decoder(8, 13)))(STUDENT, PARAMS, FROZEN, BATCH, None)


class Opening(Decoder):
    """Begins a text with tokens of its own, as translators do."""

    def opening(self):
        return 1, 2


def test_the_teacher_begins_texts_as_the_model_does():
    objective = Distillation(Pretrained("runs/t", Opening(TEACHER.embed, TEACHER.stack)))
    with pytest.raises(InputError, match="the teacher begins a text with 2 tokens of its own and the model with 0"):
        objective(STUDENT, PARAMS, FROZEN, BATCH, None)
