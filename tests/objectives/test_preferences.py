"""Preferences: where training begins, float64 formulas, the same however a batch is divided, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.dims import Fill
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Preference
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.sources import Source
from llm_jax.engine.step import Program
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.moe import MoE
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Scorer
from llm_jax.models.stack import Stack
from llm_jax.objectives.next_token import NextToken
from llm_jax.objectives.preferences import BradleyTerry, Dpo, DpoNorm, Ipo, Kto, Likelihoods, Orpo, SimPo, mismatched
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout, place
from llm_jax.text.chat import Message
from llm_jax.text.recipes import Bytes

BLOCK = Block(Attention(2, 1, 8), SwiGLU(24))
DECODER = Decoder(Embed(16, 272), Stack((BLOCK,), 1), context=24)


@dataclasses.dataclass(frozen=True)
class Praise(Source):
    """Prompts and replies of several lengths, with margins."""

    count: int = 40

    def documents(self):
        rng = np.random.default_rng(0)
        for i in range(self.count):
            chosen, rejected = ("".join(rng.choice(list("abc"), rng.integers(1, 9))) + str(i) for _ in range(2))
            yield Preference(
                (Message("user", "?" * int(rng.integers(1, 5))),), chosen, rejected, float(rng.integers(3))
            )


@pytest.fixture(scope="module")
def batches():
    data = Data(Praise(), length=24, batch=8, packing=One("truncate"), presentation=Pairs())
    stream = data.train(Bytes().train([]), seed=0)
    return [next(stream) for _ in range(2)]


def experiment(objective: Any, model: Any = DECODER, **settings: Any) -> Experiment:
    given: dict[str, Any] = dict(
        model=model, tokenizer=Bytes(), objective=objective,
        # a large epsilon: Adam's step for a gradient near rounding would otherwise be rounding made large
        optimizer=AdamW(learning_rate=1e-2, epsilon=1e-4, schedule=Constant()),
        data=Data(Praise(), length=24, batch=8, packing=One("truncate"), presentation=Pairs()),
        layout=Layout(1), precision=Precision(), steps=2,
    )  # fmt: skip
    return Experiment(**(given | settings))


def stepped(made: Experiment, batches: Any) -> Any:
    """The state after a step for each batch, and the sums of each."""
    program = Program(made.override({"log_every": 1}), made.layout.mesh())
    state, sums = program.begin(), []
    for batch in batches:
        with jax.set_mesh(program.mesh):
            state, _ = program.update(state, place(batch, program.mesh))
        sums.append(jax.device_get(state.sums))
    return jax.device_get(state.params), sums


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_training_begins_with_no_preference(compute, batches):
    """Exactly: the policy is its reference, and a head of zeros prefers nothing."""
    judge = Scorer(DECODER, head_init=Fill(0.0))
    for objective, model, loss in (
        (Dpo(smoothing=0.2), DECODER, math.log(2)), (Kto(), DECODER, 0.5), (Ipo(beta=0.5), DECODER, 1.0),
        (DpoNorm(), DECODER, math.log(2)),
        (BradleyTerry(), judge, math.log(2)),
    ):  # fmt: skip
        made = experiment(objective, model, precision=Precision(compute))
        program = Program(made, made.layout.mesh())
        state = program.begin()
        sums = jax.device_get(program.measure(state.params, state.frozen, batches[0]))
        assert sums["weight"] == 8 and sums["loss"] == 8 * np.float32(loss)
        for name in ("reward_margin", "correct", "kl"):
            assert sums.get(name, 0) == 0, name
        if model is judge or compute == "bfloat16":
            continue
        # a step compiles the policy's pass otherwise than the reference's, which rounds otherwise
        with jax.set_mesh(program.mesh):
            sums = program.update(state, place(batches[0], program.mesh))[0].sums
        np.testing.assert_allclose(sums["loss"], 8 * loss, rtol=1e-6)
        np.testing.assert_allclose(sums["reward_margin"], 0, atol=1e-5)


def test_conservative_dpo_and_odds_are_those_of_float64():
    rng = np.random.default_rng(0)
    log_BO, reference_BO = -rng.uniform(0.1, 60, (2, 6, 2))
    count_BO = rng.integers(1, 9, (6, 2)).astype(np.float64)
    pairs = Likelihoods(*(jnp.asarray(x, jnp.float32) for x in (log_BO, reference_BO, count_BO)))

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    margin_B = 0.2 * ((log_BO - reference_BO)[:, 0] - (log_BO - reference_BO)[:, 1])
    wanted = -0.9 * np.log(sigmoid(margin_B)) - 0.1 * np.log(sigmoid(-margin_B))
    np.testing.assert_allclose(Dpo(0.2, smoothing=0.1).judge(pairs)[0], wanted, rtol=1e-5)
    p_BO = np.exp(log_BO / count_BO)
    odds_BO = p_BO / (1 - p_BO)
    wanted = -np.log(p_BO[:, 0]) - 0.3 * np.log(sigmoid(np.log(odds_BO[:, 0] / odds_BO[:, 1])))
    np.testing.assert_allclose(Orpo(0.3).judge(pairs)[0], wanted, rtol=1e-5)


def test_a_reply_that_is_longer_weighs_no_more_where_dpo_is_normalised():
    """Twice the same tokens twice over: of sums the margin is twice as large, of means the same."""
    log_BO, reference_BO, count_BO = jnp.array([[-4.0, -6.0]]), jnp.array([[-5.0, -5.0]]), jnp.array([[2.0, 4.0]])
    once, twice = (Likelihoods(n * log_BO, n * reference_BO, n * count_BO) for n in (1, 2))
    assert DpoNorm(2.0).judge(once)[1].tolist() == DpoNorm(2.0).judge(twice)[1].tolist() == [[1.0, -0.5]]
    assert Dpo(2.0).judge(twice)[1].tolist() == [[4.0, -4.0]]
    np.testing.assert_allclose(DpoNorm(2.0, smoothing=0.1).judge(once)[0], np.log1p(np.exp(-1.5)) + 0.15, rtol=1e-6)


def test_odds_of_what_is_certain_are_finite():
    gradient = jax.grad(lambda x: Orpo().judge(Likelihoods(x, 0 * x, 1 + 0 * x))[0].sum())(jnp.array([[0.0, -200.0]]))
    assert np.isfinite(gradient).all()


def test_a_prompt_with_the_reply_of_another():
    """Against Python's lists."""
    rng = np.random.default_rng(3)
    shape = 8, 10
    texts = {name: np.zeros(shape, np.int32) for name in ("tokens_BT", "targets_BT", "position_BT")}
    texts |= dict(weight_BT=np.zeros(shape, np.float32), segment_BT=np.full(shape, -1, np.int32))
    parts = []
    for n in range(8):
        prompt, reply = (rng.integers(1, 99, rng.integers(1, 6)).tolist() for _ in range(2))
        text = prompt + reply
        parts.append((prompt, reply))
        texts["tokens_BT"][n, : len(text)] = text
        texts["targets_BT"][n, : len(text) - 1] = text[1:]
        texts["weight_BT"][n, len(prompt) - 1 : len(text) - 1] = 1
    made = jax.tree.map(np.asarray, mismatched(jax.tree.map(jnp.asarray, texts)))
    for n, (prompt, _) in enumerate(parts):
        text = prompt + parts[n - 2][1]
        real = made["segment_BT"][n] == 0
        assert made["tokens_BT"][n][real].tolist() == text and real[: len(text)].all()
        learnt = made["weight_BT"][n] > 0
        assert made["targets_BT"][n][learnt].tolist() == text[len(prompt) :]
        assert np.flatnonzero(learnt).tolist() == list(range(len(prompt) - 1, len(text) - 1))
        np.testing.assert_array_equal(made["position_BT"][n][real], np.arange(len(text)))


@pytest.mark.parametrize("objective", [Dpo(), Kto(), Orpo(), BradleyTerry(margin=0.5)], ids=lambda o: type(o).__name__)
def test_a_step_is_the_same_however_its_batch_is_divided(objective, batches):
    """Over two steps, so that the policy has left its reference; on one device, and on four by microbatches.

    Kto's drift is of the microbatch at hand.
    """
    made = experiment(objective, Scorer(DECODER) if isinstance(objective, BradleyTerry) else DECODER)
    padded = {k: np.concatenate([v[:6], Data.blank(made.data, 2)[k]]) for k, v in batches[1].items()}  # pyright: ignore[reportArgumentType]
    whole, sums = stepped(made, [batches[0], padded])
    assert sums[1]["weight"] == 6 and np.isfinite(sums[1]["loss"])
    other = made.override({"layout": Layout(data=2, fsdp=2), "microbatches": 1 if isinstance(objective, Kto) else 2})
    params, found = stepped(other, [batches[0], padded])
    for first in (sums[0], found[0]):
        del first["correct"]  # the policy still is its reference: which reward is higher is rounding
    for one, another in zip(sums, found, strict=True):
        assert one.keys() == another.keys()
        for key, value in one.items():
            np.testing.assert_allclose(another[key], value, rtol=1e-5, atol=2e-5, err_msg=key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), params, whole)


def test_a_pair_alone_has_no_drift_to_learn_from():
    """With the prompt's own reply in place of another one, Kto would be another objective."""
    made = experiment(Kto(), DECODER)
    alone, mesh = made.override({"microbatches": 8}), Layout(1).mesh()
    with pytest.raises(InputError, match=r"Kto compares each row with others, and has 1 at once: raise data.batch=8"):
        Program(alone, mesh).update  # noqa: B018
    assert Program(alone.override({"objective": Dpo()}), mesh).update


def test_only_the_compared_replies_count(batches):
    """Other prompts' targets, other bytes and whatever lies in padding change nothing."""
    params = nn.meta.unbox(DECODER.begin(jax.random.key(0)))
    reference = jax.tree.map(lambda x: x * 1.1, params)

    @jax.jit
    def sums(batch):
        return Dpo()(DECODER, params, {"reference": reference}, batch, None)

    other = dict(batches[0])
    other["targets_BT"] = np.where(other["weight_BT"] > 0, other["targets_BT"], 7)
    other["tokens_BT"] = np.where(other["segment_BT"] == 0, other["tokens_BT"], 9)
    found, wanted = sums(other), sums(batches[0])
    assert all(found[name] == wanted[name] for name in wanted) and wanted["loss"] != 0


def test_experts_losses_come_along(batches):
    block = Block(Attention(2, 1, 8), MoE(8, experts=2))
    for objective, model in ((Dpo(), DECODER), (BradleyTerry(), Scorer(DECODER))):
        made = experiment(objective, model)
        path = "model.stack.pattern" if model is DECODER else "model.backbone.stack.pattern"
        _, (sums,) = stepped(made.override({path: (block,)}), batches[:1])
        assert 0.5 < sums["load_balance"] / sums["weight"] < 4 and sums["auxiliary"] > 0


def test_what_is_refused(batches):
    params = nn.meta.unbox(DECODER.begin(jax.random.key(0)))
    plain = {name: x for name, x in batches[0].items() if name != "margin_B"}
    with pytest.raises(InputError, match=r"learnt from pairs: set data.presentation=Pairs\(\)"):
        Dpo()(DECODER, params, None, plain, None)
    with pytest.raises(InputError, match="model must be a Scorer"):
        BradleyTerry()(DECODER, params, None, batches[0], None)
    with pytest.raises(InputError, match="model must be a Generator"):
        Dpo()(Scorer(DECODER), params, None, batches[0], None)
    data = Data(Praise(), length=24, batch=8)
    with pytest.raises(InputError, match="AsIs would train on what was rejected too"):
        data.train(Bytes().train([]), seed=0)
    assert not NextToken().keeps_reference() and not SimPo().keeps_reference() and Kto().keeps_reference()
