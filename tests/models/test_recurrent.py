"""Recurrent models: the cells are PyTorch's, rows are as if alone, and cached generation is uncached."""

from __future__ import annotations

import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax.core.errors import InputError
from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.sampling import Sampling
from llm_jax.layers.embedding import Embed
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.alignments import ALIGNMENTS, FixedContext, Luong
from llm_jax.models.cells import CELLS, GRU, LSTM
from llm_jax.models.model import Generator, Translator
from llm_jax.models.recurrent import RecurrentDecoder, RecurrentEncoderDecoder

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

D, V, S, T = 12, 30, 7, 6
SOURCE = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, S)), jnp.int32)
TARGET = jnp.asarray(np.random.default_rng(1).integers(0, V, (2, T)), jnp.int32)
TORCH = dict(Elman=torch.nn.RNN, GRU=torch.nn.GRU, LSTM=torch.nn.LSTM)


def begin(model: Generator) -> Any:
    shapes = nn.meta.unbox(jax.eval_shape(model.begin, jax.random.key(0)))
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * draw.standard_normal(leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_pytorchs(name):
    theirs = TORCH[name](5, D, batch_first=True)
    cell, x = CELLS[name](), torch.randn(3, 8, 5)
    gates = cell.gates()

    def weight(tensor, inputs):  # [gates x F, D] -> [D, gates, F]
        return jnp.asarray(tensor.detach().numpy().reshape(gates, D, inputs).transpose(2, 0, 1))

    given, state = (getattr(theirs, f"bias_{n}_l0").detach().numpy().reshape(gates, D) for n in ("ih", "hh"))
    given, state = given.copy(), state.copy()
    params: Any = dict(
        input=dict(kernel=weight(theirs.weight_ih_l0, 5)), recurrent=dict(kernel=weight(theirs.weight_hh_l0, D))
    )
    if name == "GRU":
        params["candidate_bias"], state[2] = jnp.asarray(state[2]), 0.0
    params["input"]["bias"] = jnp.asarray(given + state)
    y, last = cell.apply({"params": params}, jnp.asarray(x.numpy()), Tokens.of((3, 8)), width=D)
    want, theirs_last = theirs(x)
    np.testing.assert_allclose(y, want.detach().numpy(), atol=1e-5)
    for part, wanted in zip(cast(Any, last).parts_BD, theirs_last if name == "LSTM" else (theirs_last,), strict=True):
        np.testing.assert_allclose(part, wanted[0].detach().numpy(), atol=1e-5)


def written(model: Generator, params: Any, prompts: list[list[int]], count: int = 6) -> list[list[int]]:
    generation = Generation(
        model, prepare(model, params, jnp.float32), prompts, max_tokens=count, sampler=Sampling(temperature=0.0),
        key_B=row_keys(0, range(len(prompts))), stops=(), vocabulary=V, dtype=jnp.float32,
    )  # fmt: skip
    texts: list[list[int]] = [[] for _ in prompts]
    while not generation.finished:
        for text, new in zip(texts, generation.advance(), strict=True):
            text += new
    return texts


def packed(*lengths: int, padding: int = 0) -> Tokens:
    """Documents in one row; then padding."""
    position = np.concatenate([np.arange(n) for n in lengths] + [np.zeros(padding)])
    segment = np.repeat([*range(len(lengths)), PADDING], [*lengths, padding])
    return Tokens(jnp.asarray(position[None], jnp.int32), jnp.asarray(segment[None], jnp.int32))


@pytest.mark.parametrize("name", CELLS)
def test_a_language_model_alone_packed_and_cached(name):
    model = RecurrentDecoder(Embed(D, V), CELLS[name](), layers=2)
    params = begin(model)
    score = jit(lambda ids, at: model.apply({"params": params}, ids, at)[0])
    whole = score(TARGET, Tokens.of((2, T)))
    assert whole.shape == (2, T, V) and whole.dtype == jnp.float32
    row = jnp.concatenate([TARGET.reshape(1, -1), jnp.zeros((1, 3), jnp.int32)], 1)
    np.testing.assert_allclose(score(row, packed(T, T, padding=3))[0, : 2 * T], whole.reshape(-1, V), atol=2e-6)
    later = score(TARGET.at[:, 3].add(1) % V, Tokens.of((2, T)))
    np.testing.assert_array_equal(later[:, :3], whole[:, :3])
    assert not np.allclose(later[:, 4:], whole[:, 4:])

    prompts = [TARGET[0].tolist(), TARGET[1, :3].tolist()]  # the second is padded on the left
    for prompt, text in zip(prompts, written(model, params, prompts), strict=True):
        ids = jnp.asarray([prompt + text], jnp.int32)
        best = score(ids, Tokens.of(ids.shape))[0].argmax(-1)
        assert best[len(prompt) - 1 : -1].tolist() == text


KINDS = [
    dict(alignment=FixedContext(), cell=LSTM(), layers=2),
    dict(alignment=Luong(), bidirectional=False),
    dict(layers=2),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind.get("alignment", "Bahdanau")).__name__)
def test_a_translation_alone_packed_and_cached(kind):
    model = RecurrentEncoderDecoder(Embed(D, V), start=1, **kind)
    params = begin(model)

    @jit
    def score(source, target, source_at, at):
        read = model.apply({"params": params}, source, source_at, method="encode")
        return model.apply({"params": params}, target, at, source=read)[0]

    def alone(source, target):
        return score(source, target, Tokens.of(source.shape), Tokens.of(target.shape))

    whole = alone(SOURCE, TARGET)
    assert whole.shape == (2, T, V)
    pad = jnp.zeros((1, 2), jnp.int32)
    both = (jnp.concatenate([x.reshape(1, -1), pad], 1) for x in (SOURCE, TARGET))
    found = score(*both, packed(S, S, padding=2), packed(T, T, padding=2))
    np.testing.assert_allclose(found[0, : 2 * T], whole.reshape(-1, V), atol=3e-6)
    assert np.isfinite(found).all()
    later = alone(SOURCE, TARGET.at[:, 3].add(1) % V)
    np.testing.assert_array_equal(later[:, :3], whole[:, :3])
    for place in (0, S - 1):  # all of the source is read from the first token on
        assert (jnp.abs(alone(SOURCE.at[:, place].add(1) % V, TARGET) - whole).max(-1) > 1e-5).all()

    prompts = [SOURCE[0].tolist(), SOURCE[1, :4].tolist()]
    for prompt, text in zip(prompts, written(model, params, prompts), strict=True):
        target = jnp.asarray([[1, *text]], jnp.int32)
        best = alone(jnp.asarray([prompt], jnp.int32), target)[0].argmax(-1)
        assert best[:-1].tolist() == text


def test_attention_is_what_the_papers_say():
    """In float64 NumPy, for one state; Bahdanau's is fed to the cell, Luong's joins its output."""
    model = RecurrentEncoderDecoder(Embed(D, V), alignment=Luong(), start=1)
    params = begin(model)
    read: Any = model.apply({"params": params}, SOURCE, method="encode")
    y = np.random.default_rng(3).standard_normal((2, T, D)).astype(np.float32)
    own = params["consult"]
    found: Any = Luong(width=D).apply({"params": own}, jnp.asarray(y), Tokens.of((2, T)), read, method="combine")
    x, w = np.asarray(read.x_BSD, np.float64), {n: np.asarray(own[n]["kernel"], np.float64) for n in own}
    score = np.einsum("btf,bsd,df->bts", y, x, w["key"])
    share = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    want = np.tanh(share @ x @ w["context"] + y @ w["state"] + np.asarray(own["state"]["bias"]))
    np.testing.assert_allclose(found, want, atol=1e-5)

    additive = RecurrentEncoderDecoder(Embed(D, V), start=1)
    params = begin(additive)
    read, own = cast(Any, additive.apply({"params": params}, SOURCE, method="encode")), params["consult"]

    def fed(module, state):
        return module.feed(read)(state, jnp.zeros(2, jnp.int32))

    aligned = ALIGNMENTS["Bahdanau"](width=D)
    found = nn.apply(fed, aligned)({"params": own}, jnp.asarray(y[:, 0]))
    x, w = np.asarray(read.x_BSD, np.float64), {n: np.asarray(own[n]["kernel"], np.float64) for n in own}
    hidden = np.tanh(x @ w["key"] + np.asarray(own["key"]["bias"]) + (y[:, 0] @ w["query"])[:, None])
    score = hidden @ w["vector"]
    share = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum("bs,bsd->bd", share, x), atol=1e-5)


def test_what_is_not_given_is_asked_for():
    model = RecurrentEncoderDecoder(Embed(D, V), GRU())
    filled = model.filled(V, 8, 9, 4)
    assert isinstance(filled, Translator) and filled.opening() == (4,)
    with pytest.raises(InputError, match=r"model.start is not filled in"):
        model.opening()
    with pytest.raises(InputError, match=r"RecurrentEncoderDecoder needs sources: set data.presentation"):
        model.apply({}, {"tokens_BT": TARGET}, None, method="predict")
    with pytest.raises(InputError, match=r"RecurrentEncoderDecoder scores a text only beside its source: generate"):
        model.apply({}, TARGET, method="all_scores")
