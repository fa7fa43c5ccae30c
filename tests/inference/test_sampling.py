"""Samplers keep what Hugging Face's processors and a float64 reference keep, and draw it as often as they should."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm_jax.core.errors import InputError
from llm_jax.core.serialization import parse
from llm_jax.inference.generate import Progress, row_keys
from llm_jax.inference.sampling import Sampler, Sampling

SETTINGS = (
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=3.0, top_k=1),
    Sampling(top_k=7),
    Sampling(top_k=10_000),
    Sampling(top_p=0.9),
    Sampling(top_p=1e-9),
    Sampling(temperature=1.5, top_p=0.999),
    Sampling(min_p=0.05),
    Sampling(min_p=1.0),
    Sampling(repetition_penalty=1.3),
    Sampling(repetition_penalty=0.8, top_k=5),
    Sampling(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02, repetition_penalty=1.1),
    Sampling(temperature=1.4, top_k=100, top_p=0.7, min_p=0.1, repetition_penalty=2.0),
)
ROWS, VOCABULARY = 8, 301


def scores_and_past():
    random = np.random.default_rng(0)
    logits_BV = (3 * random.standard_normal((ROWS, VOCABULARY))).astype(np.float32)
    past_BT = random.integers(0, VOCABULARY, (ROWS, 20))
    seen_BV = np.zeros((ROWS, VOCABULARY), bool)
    seen_BV[np.arange(ROWS)[:, None], past_BT] = True
    return logits_BV, past_BT, seen_BV


@jax.jit
def probabilities(sampling, logits_BV, seen_BV):
    return jax.nn.softmax(sampling.keep(sampling.penalise(logits_BV, seen_BV)), axis=-1)


def reference(s: Sampling, logits_BV, seen_BV):
    """One row and one token at a time, in float64."""
    out = np.zeros(logits_BV.shape)
    for row, logits_V in enumerate(logits_BV.astype(np.float64)):
        penalty = np.where(logits_V > 0, 1 / s.repetition_penalty, s.repetition_penalty)
        logits_V = np.where(seen_BV[row], logits_V * penalty, logits_V) / s.temperature
        order = sorted(range(logits_V.size), key=lambda i: -logits_V[i])[: s.top_k or None]
        weight = {i: np.exp(logits_V[i] - logits_V[order[0]]) for i in order}
        total, held, kept = sum(weight.values()), 0.0, []
        for i in order:
            if held / total < s.top_p or s.top_p == 1:
                kept.append(i)
            held += weight[i]
        kept = [i for i in kept if weight[i] >= s.min_p * weight[order[0]]]
        for i in kept:
            out[row, i] = weight[i] / sum(weight[j] for j in kept)
    return out


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_equals_a_float64_reference(sampling):
    logits_BV, _, seen_BV = scores_and_past()
    ours, expected = probabilities(sampling, logits_BV, seen_BV), reference(sampling, logits_BV, seen_BV)
    np.testing.assert_array_equal(np.asarray(ours) > 0, expected > 0)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_equals_hugging_face(sampling):
    logits_BV, past_BT, seen_BV = scores_and_past()
    warpers = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    warpers.append(TopPLogitsWarper(sampling.top_p))
    warpers.append(MinPLogitsWarper(sampling.min_p))
    theirs = torch.softmax(warpers(torch.LongTensor(past_BT), torch.FloatTensor(logits_BV)), -1).numpy()
    ours = np.asarray(probabilities(sampling, logits_BV, seen_BV))
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_frequencies_are_the_probabilities():
    sampling, draws = Sampling(temperature=1.3, top_k=8, top_p=0.95, repetition_penalty=1.5), 40_000
    logits_BV, seen_BV = (x[:1] for x in scores_and_past()[::2])
    keys = jax.random.split(jax.random.key(1), draws)
    ids = np.asarray(jax.jit(Sampling.draw)(sampling, keys, logits_BV.repeat(draws, 0), seen_BV.repeat(draws, 0)))
    p_V = reference(sampling, logits_BV, seen_BV)[0]
    counts = np.bincount(ids, minlength=VOCABULARY)
    assert not counts[p_V == 0].any()
    held = p_V > 0
    chi_squared = ((counts - draws * p_V)[held] ** 2 / (draws * p_V[held])).sum()
    assert held.sum() > 4
    assert chi_squared < held.sum() + 4 * np.sqrt(2 * held.sum())


def test_greedy_takes_the_best_after_the_penalty():
    logits_BV = np.array([[1.0, 3.0, 2.0], [-1.0, -3.0, -2.0]], np.float32)
    seen_BV = np.array([[False, True, False], [True, False, False]])
    keys = jax.random.split(jax.random.key(0), 2)
    draw = jax.jit(Sampling.draw)
    assert draw(Sampling(temperature=0.0), keys, logits_BV, seen_BV).tolist() == [1, 0]
    assert draw(Sampling(temperature=0.0, repetition_penalty=2.5), keys, logits_BV, seen_BV).tolist() == [2, 2]
    assert draw(Sampling(top_k=1, repetition_penalty=2.5), keys, logits_BV, seen_BV).tolist() == [2, 2]


def test_equal_scores_are_kept_together():
    logits_BV = np.array([[2.0, 1.0, 1.0, 0.0]], np.float32)
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.6)):
        kept = np.asarray(probabilities(sampling, logits_BV, np.zeros((1, 4), bool)))[0] > 0
        assert kept.tolist() == [True, True, True, False]


def test_settings_do_not_compile_again():
    traces = []

    @jax.jit
    def draw(sampling, *arguments):
        traces.append(sampling)
        return sampling.draw(*arguments)

    logits_BV, _, seen_BV = scores_and_past()
    keys = jax.random.split(jax.random.key(0), ROWS)
    for sampling in SETTINGS:
        draw(sampling, keys, logits_BV, seen_BV)
    assert len(traces) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=-0.1), dict(temperature=float("nan")), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5),
        dict(min_p=-0.1), dict(min_p=2.0), dict(repetition_penalty=0.0), dict(repetition_penalty=1e-38),
        dict(temperature="0.8"), dict(temperature=None), dict(temperature=float("inf")), dict(temperature=1e39),
        dict(top_k="3"), dict(top_k=2.5), dict(top_p=1e-50), dict(min_p=[0.1]), dict(repetition_penalty=float("inf")),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))) as said:
        Sampling(**wrong).check()
    assert "\n" not in str(said.value)


def test_numbers_of_numpy_are_numbers():
    some: dict[str, Any] = dict(temperature=np.float32(0.5), top_k=np.int64(3), top_p=np.float64(1))
    more: dict[str, Any] = dict(temperature=1, top_k=40.0, min_p=0, repetition_penalty=np.float16(1.5))
    Sampling(**some).check()
    Sampling(**more).check()


@pytest.mark.parametrize("temperature", [1e-6, 1e-20, 1e-36, 1e-37, 1e-38, 1e-39, 1e-44, 1e-46, 5e-324])
@pytest.mark.parametrize("above", [8.0, -3.0, 3e4])
def test_a_very_low_temperature_takes_the_best_token(temperature, above):
    """Divided by it, scores overflow to infinity, and the first of them won."""
    random = np.random.default_rng(0)
    logits_BV = jnp.asarray(above + random.normal(size=(6, 40)), jnp.float32).at[:, 3].set(-jnp.inf)
    seen_BV, keys = jnp.zeros((6, 40), bool), jax.random.split(jax.random.key(0), 6)
    ways: tuple[dict[str, Any], ...] = ({}, dict(top_k=5), dict(top_p=0.9), dict(min_p=0.5))
    for more in ways:
        sampling = Sampling(temperature=temperature, **more)
        sampling.check()
        drawn_B = jax.jit(Sampling.draw)(sampling, keys, logits_BV, seen_BV)
        np.testing.assert_array_equal(drawn_B, logits_BV.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-5, 1e-12, 1e-30, 1e-37])
def test_equal_scores_are_drawn_evenly_at_a_very_low_temperature(temperature):
    """Rounding took the noise away, and the first of them won."""
    logits_BV = jnp.zeros((400, 4)).at[:, :2].set(5.0)
    keys = jax.random.split(jax.random.key(0), 400)
    drawn_B = jax.jit(Sampling.draw)(Sampling(temperature), keys, logits_BV, jnp.zeros((400, 4), bool))
    assert 150 < int((drawn_B == 0).sum()) < 250 and int((drawn_B < 2).sum()) == 400


def test_the_settings_are_a_part():
    assert parse("Sampling(temperature=0.5, top_k=3)") == Sampling(temperature=0.5, top_k=3)


@pytest.mark.parametrize(
    "given", [lambda score_BV: score_BV.argmax(-1)[:, None].astype(jnp.int32), lambda score_BV: score_BV.max(-1), list]
)
def test_what_a_sampler_of_ones_own_draws_is_a_token_for_each_row(given):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Mine(Sampler):
        def draw(self, key_B, logits_BV, seen_BV):
            return given(logits_BV)

    key_B, none_V = row_keys(0, range(2)), jnp.zeros(5, bool)
    at = jnp.zeros(2, jnp.int32)
    rows = Progress(
        key_B=key_B, newest_B=at, position_B=at, slot=jnp.int32(0), seen_BV=jnp.zeros((2, 5), bool),
        done_B=at.astype(bool), made=jnp.int32(0), sound_B=~at.astype(bool),
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"Mine\.draw\(\) returned .*: it must return int32 \[2\]: a token for each row"
    ):
        rows.draw(jnp.zeros((2, 5)), Mine(), none_V, none_V)
