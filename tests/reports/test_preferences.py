"""What preferences made of a model: rewards, gains and distances computed again one text at a time; pairs by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Example, Preference, Rendering, Text
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.sources import Source
from llm_jax.engine.trained import Finished
from llm_jax.inference.language_model import LanguageModel
from llm_jax.inference.sampling import Sampling
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Scorer
from llm_jax.models.stack import Stack
from llm_jax.objectives.preferences import Dpo
from llm_jax.objectives.rewards import Reward
from llm_jax.optim.precision import Precision
from llm_jax.reports.preferences import PairAccuracy, Rewarded
from llm_jax.reports.statistics import independent_pairs, mean_error, wilson
from llm_jax.rl.completions import Prompt, replies
from llm_jax.rl.rollouts import Rollouts
from llm_jax.text.chat import Message
from llm_jax.text.recipes import Bytes, Characters

TOKENIZER = Characters().train(["0123456789+="])  # few enough that a model which has learnt nothing ends some texts
MODEL = Decoder(Embed(8, TOKENIZER.vocabulary), Stack((Block(Attention(1, 1, 8), FeedForward(8)),), 1), context=32)
TASKS = [Example(f"{i}+{i}=", str(2 * i)) for i in range(12)]
TOKENS = 6


@dataclasses.dataclass(frozen=True)
class Varied(Reward):
    """How many different characters a completion has, by how many are wanted."""

    def __call__(self, prompts, completions, examples: Any):
        scores = [len(set(c)) / len(e.answer) for c, e in zip(completions, examples, strict=True)]
        return np.array(scores, np.float64)


@dataclasses.dataclass(frozen=True)
class Tasks(Source):
    def documents(self):
        return iter(TASKS)

    def validation(self):
        return iter(TASKS)


def drawn(seed: int) -> Any:
    params = jax.jit(lambda key: nn.meta.unbox(MODEL.begin(key)))(jax.random.key(seed))
    return jax.tree.map(lambda x: 4 * x, params)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return {"own": drawn(0), "reference": drawn(1)}


def finished(params: dict[str, Any], documents: list[Any]) -> Finished:
    data = SimpleNamespace(rendering=Rendering(), documents=lambda split: documents, labels=None)
    experiment: Any = SimpleNamespace(model=MODEL, precision=Precision(), data=data, objective=Dpo())
    frozen = {"reference": params["reference"]} if "reference" in params else None
    return Finished(experiment, TOKENIZER, params["own"], frozen)


def rewarded(**settings: Any) -> Rewarded:
    given: dict[str, Any] = dict(max_tokens=TOKENS, batch=5, temperature=0.0) | settings
    return Rewarded(Varied(), **given)


def test_the_numbers_are_those_of_greedy_replies(params):
    lms = {name: LanguageModel(MODEL, params[name], TOKENIZER) for name in params}

    def scores(name: str, ids: list[int]) -> np.ndarray:
        padded = np.zeros((1, 16), np.int32)  # to one length: one program is compiled
        padded[0, : len(ids)] = ids
        return lms[name].logits(padded)[0, : len(ids)].astype(np.float64)

    reward: dict[str, list[float]] = {name: [] for name in params}
    size: dict[str, list[int]] = {name: [] for name in params}
    ended: dict[str, list[bool]] = {name: [] for name in params}
    for name in params:
        for task in TASKS:
            prompt = [TOKENIZER.special["bos"], *TOKENIZER.encode(task.prompt)]
            ids = list(prompt)
            while len(ids) < len(prompt) + TOKENS and ids[-1] not in TOKENIZER.ends:
                score_V = scores(name, ids)[-1]
                score_V[sorted(TOKENIZER.beside - TOKENIZER.ends)] = -np.inf
                ids.append(int(score_V.argmax()))
            ended[name].append(ids[-1] in TOKENIZER.ends)
            size[name].append(len(ids) - len(prompt) - ended[name][-1])
            said = TOKENIZER.decode(ids[len(prompt) :][: size[name][-1]])
            reward[name].append(len(set(said)) / len(task.answer))
    gain_N = np.array(reward["own"]) - np.array(reward["reference"])
    error = 1.959964 * gain_N.std(ddof=1) / 12**0.5
    wanted = dict(
        reward=np.mean(reward["own"]), reference_reward=np.mean(reward["reference"]), reward_gain=gain_N.mean(),
        reward_gain_low=gain_N.mean() - error, reward_gain_high=gain_N.mean() + error,
        reward_ties=(gain_N == 0).mean(), reply_tokens=np.mean(size["own"]), truncated=1 - np.mean(ended["own"]),
    )  # fmt: skip
    assert 0 < wanted["truncated"] < 1 and error > 0
    found = rewarded()(finished(params, TASKS))
    assert found.metrics == pytest.approx(wanted, rel=1e-4)
    assert f"12 held-out prompts: reward {wanted['reward']:.3f}, {wanted['reply_tokens']:.1f} tokens" in found.lines[0]
    assert f"{wanted['truncated']:.1%} cut off" in found.lines[0]
    assert f"{1 - np.mean(ended['reference']):.1%} cut off" in found.lines[1]
    assert found.lines[1].endswith(f"so a gain of {gain_N.mean():.3f} +- {error:.3f}")
    assert found.lines[2] == "  no KL to the reference: at temperature 0 replies are not drawn"


@pytest.mark.parametrize("given", [0.5, 1.0, None])
def test_the_divergence_is_of_the_distributions_that_replies_are_drawn_from(params, given):
    """At the temperature, that of the rollouts by default, and among the tokens that may be drawn."""
    report, run = rewarded(temperature=given), finished(params, TASKS)
    if given is None:
        experiment: Any = run.experiment
        experiment.data = Rollouts(Tasks(), temperature=2.0)
    found, temperature = report(run), 2.0 if given is None else given
    prompts = Prompt.among(run.documents("validation"), TOKENIZER, Rendering(), 99)[0]
    made = replies(run.lm, prompts, max_tokens=TOKENS, sampler=Sampling(temperature), seed=0, batch=5)
    written = [i for i in range(TOKENIZER.vocabulary) if i not in TOKENIZER.beside or i in TOKENIZER.ends]
    kl, raw = [], []
    for prompt, ids in zip(prompts, made.ids, strict=True):  # of every token drawn, the one that ends a text too
        text_BT = np.zeros((1, 16), np.int32)  # to one length: one program is compiled
        text_BT[0, : len(prompt.ids) + len(ids)] = [*prompt.ids, *ids]
        drawn = slice(len(prompt.ids) - 1, len(prompt.ids) + len(ids) - 1)
        here, there = (
            LanguageModel(MODEL, params[name], TOKENIZER).logits(text_BT)[0, drawn].astype(np.float64)
            for name in ("own", "reference")
        )
        each = [scipy.special.softmax(score[:, written] / temperature, axis=-1) for score in (here, there)]
        kl.append(scipy.special.rel_entr(*each).sum(-1))
        raw.append(scipy.special.rel_entr(*(scipy.special.softmax(x, axis=-1) for x in (here, there))).sum())
    per_reply = np.mean([kl_T.sum() for kl_T in kl])
    assert len({len(kl_T) for kl_T in kl}) > 1 and abs(per_reply - np.mean(raw)) > 0.01 * per_reply
    wanted = dict(kl=np.concatenate(kl).mean(), kl_per_reply=per_reply)
    assert {name: found.metrics[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    assert found.lines[2] == f"  KL to the reference {wanted['kl']:.4f} nats a token, {per_reply:.3f} a reply"


def test_a_model_that_is_its_reference_gains_nothing(params):
    same = finished({"own": params["own"], "reference": params["own"]}, TASKS)
    told = rewarded(temperature=1.0)(same)
    found = told.metrics
    assert found["reward_ties"] == 1 and "  in 100.0% of the prompts both have the same reward" in told.lines
    alone = rewarded(limit=1)(same)
    assert "a gain of 0.000 (one prompt has no interval)" in alone.lines[1]
    assert not alone.metrics.keys() & {"reward_gain_low", "reward_gain_high"}
    assert (found["reward_gain"], found["reward_gain_low"], found["kl"], found["kl_per_reply"]) == (0, 0, 0, 0)
    assert found["reward"] == found["reference_reward"] > 0


def test_without_a_reference_there_is_no_gain_and_prompts_are_limited(params):
    alone = finished({"own": params["own"]}, [Text("no prompt"), Example("1+" * 13, "0"), *TASKS])
    found = rewarded(limit=4, show=1)(alone)
    assert found.metrics.keys() == {"reward", "reply_tokens", "truncated", "validation_left_out"}
    assert found.lines[0].startswith("4 held-out prompts") and found.lines[3].split() == ["prompt", "0+0="]
    assert found.lines[1] == "  1 of 5 prompts leave no room for max_tokens=6: they are left out"
    assert found.metrics["validation_left_out"] == 1
    for documents, none in (([Text("a"), Example("1+" * 13, "0")], "none of 1 does"), ([Text("a")], "there are none")):
        with pytest.raises(InputError, match=f"leave room for max_tokens=6: {none}"):
            rewarded()(finished(params, documents))


REPLIES = [  # what was preferred, and what it was compared with
    ("aab", "b"), ("abc", "bbbb"), ("a", "bb"), ("b", "aa"), ("bbb", "aa"), ("b", "c"), ("ab", "bb"), ("aaa", "aa"),
    ("cc", "abc"),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Compared(Source):
    def documents(self):
        return (Preference((Message("user", "?"),), chosen, rejected) for chosen, rejected in REPLIES)

    validation = documents


class Counting(Scorer):
    """Scores a text by how many of its letters are "a"."""

    def reward(self, tokens_BT, at=None, *, dropout_key=None):
        return (tokens_BT == ord("a")).sum(1).astype(jnp.float32)


def test_pairs_with_a_text_in_common_tell_less():
    """By the definition: the variance of a mean is a sum over all pairs of pairs that have a member in common."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        member_PO = np.array([draw.choice(9, 2, replace=False) for _ in range(30)])
        value_P = draw.normal(size=30) + draw.normal(size=9)[member_PO].sum(1)
        error_P = value_P - value_P.mean()
        both = [[bool({*one} & {*other}) for other in member_PO.tolist()] for one in member_PO.tolist()]
        variance = max((np.outer(error_P, error_P) * both).sum(), (error_P**2).sum()) / 30**2
        assert independent_pairs(value_P, member_PO) == pytest.approx((error_P**2).sum() / 30 / variance)
    apart = np.arange(60).reshape(-1, 2)
    assert independent_pairs(value_P, apart) == pytest.approx(30) and independent_pairs(np.ones(30), apart) == 30
    assert independent_pairs(np.repeat(value_P[:10], 3), np.repeat(apart[:10], 3, 0)) == pytest.approx(10)
    assert mean_error(value_P, 30) == mean_error(value_P) and mean_error(value_P[:1]) is None


def test_pairs_are_judged_by_the_scores_of_whole_texts():
    data = Data(Compared(), length=16, batch=4, packing=One(), presentation=Pairs())
    told: Any = SimpleNamespace(experiment=SimpleNamespace(model=Counting(MODEL), data=data), params={})
    told.tokenizer = data.prepare(Bytes())
    found = PairAccuracy()(told)  # of three batches the last is a pair and padding
    right, longer = 5, 3 + 2 / 2  # two equal scores are no right judgement; of two texts of a length, either is longer
    ahead_P = found.metrics["ahead_of_length"]
    assert {k: v for k, v in found.metrics.items() if not k.startswith("ahead")} == pytest.approx(
        dict(pair_accuracy=right / 9, pair_accuracy_of_length=longer / 9, pair_ties=1 / 9)
    )
    assert ahead_P == pytest.approx((right - longer) / 9)
    texts = [f"?{text}" for pair in REPLIES for text in pair]
    member_PO = np.array([texts.index(text) for text in texts]).reshape(-1, 2)
    right_P = np.array([a.count("a") > b.count("a") for a, b in REPLIES], np.float64)
    assert right_P.sum() == right
    count = independent_pairs(right_P, member_PO)
    low, high = wilson(right / 9 * count, count)
    assert found.lines == [
        f"9 held-out pairs: {right / 9:.3f} judged right (95% interval {low:.3f} to {high:.3f}); "
        f"the longer of two is preferred in {longer / 9:.3f}",
        f"  ahead of length by {ahead_P:.3f} (95% interval {found.metrics['ahead_of_length_low']:.3f} to "
        f"{found.metrics['ahead_of_length_high']:.3f})",
        "  11.1% have two equal scores, which is not judged right",
    ]
    told.experiment.model = MODEL
    with pytest.raises(InputError, match="model"):
        PairAccuracy()(told)
