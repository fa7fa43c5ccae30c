"""Every objective of every table, on a tiny model and a batch that fit it.

An objective is enrolled by its line in the table, and needs a `Fitting` under its name in `FITTINGS`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llm_jax.objectives
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Tied
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier, Scorer
from llm_jax.models.model import Model
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.models.word2vec import Word2Vec
from llm_jax.objectives.classification import Classification, MultiLabelClassification, Regression
from llm_jax.objectives.contrastive import Contrastive
from llm_jax.objectives.distillation import Distillation
from llm_jax.objectives.masked import MaskedTokens
from llm_jax.objectives.next_token import NextToken
from llm_jax.objectives.objective import Objective, Relating
from llm_jax.objectives.policy import Dapo, DrGrpo, Grpo, PolicyGradient, Reinforce, Rloo
from llm_jax.objectives.ppo import Ppo
from llm_jax.objectives.preferences import BradleyTerry, Dpo, DpoNorm, Ipo, Kto, Orpo, SimPo
from llm_jax.objectives.word2vec import Cbow, SkipGram

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

B, T, WORDS, CLASSES = 4, 6, 13, 3  # the last row of a batch is padding
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def draws_of_its_own():
    """What a test draws does not depend on which tests ran before it in the same process."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


@dataclasses.dataclass
class Fitting:
    """An objective with a model and a batch that fit it, and what is frozen.

    `draws`: what it draws in evaluation depends on the rows of the batch, so that pieces of it do not add up.
    `alone`: sums of training alone.
    """

    objective: Objective
    model: Model
    batch: dict[str, np.ndarray]
    frozen: Any = None
    draws: bool = False
    alone: tuple[str, ...] = ()

    def params(self) -> Any:
        return nn.meta.unbox(self.model.begin(jax.random.key(0)))


def words(*shape: int) -> np.ndarray:
    return RNG.integers(0, WORDS, shape).astype(np.int32)


def text(axes: str = "BT", before: str = "") -> dict[str, np.ndarray]:
    """Where tokens stand: a document a row, and the last row padding."""
    segment = np.zeros((B, T), np.int32)
    segment[-1] = -1
    return {
        f"{before}segment_{axes}": segment,
        f"{before}position_{axes}": np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
    }


def read() -> dict[str, np.ndarray]:
    return dict(tokens_BT=words(B, T)) | text()


def predicted() -> dict[str, np.ndarray]:
    weight = RNG.integers(0, 2, (B, T)).astype(np.float32)
    weight[-1] = 0
    return read() | dict(targets_BT=words(B, T), weight_BT=weight)


def numbered() -> dict[str, np.ndarray]:
    return read() | dict(number_B=np.array([0.5, 1, 0, 0], np.float32))


def stack(**attention: Any) -> Stack:
    return Stack((Block(Attention(2, head=4, **attention), FeedForward(8), dropout=0.1),), 1)


def decoder(width: int = 8) -> Decoder:
    return Decoder(Embed(width, WORDS), stack())


def encoder() -> Encoder:
    return Encoder(Embed(8, WORDS), stack(mask=Full()), head=Tied())


def near(objective: Any) -> Fitting:
    frozen = dict(keep_V=np.ones(WORDS, np.float32)) | objective.decisions.prepare(np.arange(1, WORDS + 1))
    return Fitting(objective, Word2Vec(Embed(8, WORDS)), read(), jax.tree.map(jnp.asarray, frozen), draws=True)


def distilled() -> Fitting:
    teacher, run = decoder(12), "runs/teacher"
    frozen = {"pretrained": {run: nn.meta.unbox(teacher.begin(jax.random.key(1)))}}
    objective = Distillation(Pretrained(run, teacher), "reverse", 2.0, 0.3)
    return Fitting(objective, decoder(), predicted() | dict(bytes_BT=words(B, T)), frozen)


def rewarded(objective: PolicyGradient) -> Fitting:
    """The rewards are negative, so that the loss of an evaluation is positive.

    The first two rows are one completion, worth something in one and less than nothing in the other: whatever its ratio
    is, one of the two is not clipped, and they do not cancel.
    """
    model = ActorCritic(decoder(), Scorer(decoder())) if isinstance(objective, Ppo) else decoder()
    of_targets = ("old_BT", "reference_BT", "value_BT", "advantage_BT", "return_BT")
    batch = predicted() | {name: (-2 - RNG.random((B, T))).astype(np.float32) for name in of_targets}
    batch["weight_BT"][0, 1] = 1.0
    batch = {name: np.concatenate([array[:1], array[:1], array[2:]]) for name, array in batch.items()}
    worth_B = np.array([1.0, -0.5, 0.7, 0.0], np.float32)
    batch["advantage_BT"] = np.broadcast_to(worth_B[:, None], (B, T))
    of_rows = ("reward_B", "reward_spread_B", "ended_B", "kl_coefficient_B")
    batch |= {name: np.full(B, -1, np.float32) for name in of_rows}
    frozen = dict(allowed_V=np.arange(WORDS) != 0, temperature=np.float32(1.2), max_tokens=np.float32(T), reference={})
    batch["targets_BT"] = np.maximum(batch["targets_BT"], 1)
    alone = ("clip_fraction", "kl", "kl_per_reply")
    return Fitting(objective, model, batch, frozen, alone=(*alone, *(f"{name}_weight" for name in alone), "value_loss"))


def compared(objective: Objective) -> Fitting:
    """Pairs of texts side by side, whose replies begin at the third token."""
    batch = {name: np.concatenate([array, array], 1) for name, array in text().items()}
    weight = np.broadcast_to((np.arange(T) >= 2) & (np.arange(T) < T - 1), (B, T)).astype(np.float32)
    batch |= dict(tokens_BT=words(B, 2 * T), targets_BT=words(B, 2 * T), margin_B=np.ones(B, np.float32))
    batch["weight_BT"] = np.concatenate([weight, weight], 1) * (batch["segment_BT"] == 0)
    reference = nn.meta.unbox(decoder().begin(jax.random.key(2)))
    model = Scorer(decoder()) if isinstance(objective, BradleyTerry) else decoder()
    return Fitting(objective, model, batch, dict(reference=reference), draws=isinstance(objective, Kto))


FITTINGS: dict[str, Callable[[], Fitting]] = dict(
    NextToken=lambda: Fitting(
        NextToken(0.1), decoder(), predicted() | dict(bytes_BT=words(B, T)), alone=("cross_entropy",)
    ),
    MaskedTokens=lambda: Fitting(MaskedTokens(), encoder(), predicted()),
    Classification=lambda: Fitting(
        Classification(0.1),
        Classifier(encoder(), CLASSES),
        read() | dict(label_B=np.array([0, 2, 1, -1], np.int32)),
        alone=("cross_entropy",),
    ),
    MultiLabelClassification=lambda: Fitting(MultiLabelClassification(), Classifier(encoder(), 1), numbered()),
    Regression=lambda: Fitting(Regression(), Classifier(encoder(), 1), numbered()),
    Contrastive=lambda: Fitting(Contrastive(), encoder(), read() | dict(source_BS=words(B, T)) | text("BS", "source_")),
    Distillation=distilled,
    SkipGram=lambda: near(SkipGram(window=2)),
    Cbow=lambda: near(Cbow(window=2)),
    Grpo=lambda: rewarded(Grpo()),
    DrGrpo=lambda: rewarded(DrGrpo()),
    Dapo=lambda: rewarded(Dapo()),
    Reinforce=lambda: rewarded(Reinforce()),
    Rloo=lambda: rewarded(Rloo()),
    Ppo=lambda: rewarded(Ppo()),
    BradleyTerry=lambda: compared(BradleyTerry(margin=0.1, center_rewards_coefficient=0.2)),
    Dpo=lambda: compared(Dpo(smoothing=0.1)),
    DpoNorm=lambda: compared(DpoNorm(smoothing=0.1)),
    Ipo=lambda: compared(Ipo()),
    Kto=lambda: compared(Kto()),
    Orpo=lambda: compared(Orpo()),
    SimPo=lambda: compared(SimPo()),
)


def enrolled() -> dict[str, type[Objective]]:
    """What the tables of `llm_jax.objectives` list."""
    found: dict[str, type[Objective]] = {}
    for info in pkgutil.iter_modules(llm_jax.objectives.__path__, "llm_jax.objectives."):
        for name, table in vars(importlib.import_module(info.name)).items():
            if name.isupper() and isinstance(table, dict):
                found |= {n: cls for n, cls in table.items() if isinstance(cls, type) and issubclass(cls, Objective)}
    return found


def test_every_objective_has_a_fitting_and_every_fitting_an_objective():
    assert enrolled().keys() == FITTINGS.keys()


@pytest.mark.parametrize("name", enrolled())
def test_an_objective(name):
    fitting = FITTINGS[name]()
    objective, model, batch, params = fitting.objective, fitting.model, fitting.batch, fitting.params()
    assert isinstance(objective, enrolled()[name])

    @jit
    def everything(params, batch, key):
        def loss(params):
            sums = objective(model, params, fitting.frozen, batch, key)
            return sums["loss"] + sums.get("auxiliary", 0.0), sums

        measured = functools.partial(objective, model, params, fitting.frozen)
        half = [{name: array[i::2] for name, array in batch.items()} for i in range(2)]
        return jax.value_and_grad(loss, has_aux=True)(params), measured(batch, None), [measured(h, None) for h in half]

    key = jax.random.key(1)
    ((loss, trained), gradients), measured, halves = everything(params, batch, key)
    assert np.isfinite(loss) and float(measured["weight"]) > 0 and float(measured["loss"]) > 0
    assert set(trained) - set(fitting.alone) <= set(measured) and all(value.shape == () for value in measured.values())
    assert all(value.dtype == jnp.float32 for value in measured.values())
    assert any(np.asarray(g).any() for g in jax.tree.leaves(gradients))
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)

    if not (fitting.draws or isinstance(objective, Relating)):  # `Relating` goes through the step in its own way
        for sum_name, value in measured.items():
            # a KL is small beside the terms that it is a sum of, whose rounding it has
            atol = 1e-6 if sum_name == "kl" else 0.0
            together = halves[0][sum_name] + halves[1][sum_name]
            np.testing.assert_allclose(value, together, rtol=1e-5, atol=atol, err_msg=sum_name)

    other = {n: a.copy() for n, a in batch.items()}
    for array_name in ("tokens_BT", "targets_BT", "source_BS", "bytes_BT"):
        if array_name in other:
            other[array_name][-1] = (other[array_name][-1] + 5) % WORDS
    (_, changed), again, _ = everything(params, other, key)
    for (sum_name, value), found in zip(measured.items(), again.values(), strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-6, err_msg=f"{sum_name} of a row that has no weight")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), changed, gradients)
