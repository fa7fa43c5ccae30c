"""Tiny models whose scores are far from ties, and what they say without a cache."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.sampling import Sampler, Sampling
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Untied
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.positions import Positions, Rope
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack

VOCABULARY = 61
GREEDY = Sampling(temperature=0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best(Sampler):
    """The best token and nothing else, which is quicker to compile."""

    def draw(self, key_B, logits_BV, seen_BV):
        return logits_BV.argmax(-1).astype(jnp.int32)


def decoder(
    *attentions: Attention, repeats: int = 1, run: Literal["loop", "scan"] = "loop", vocabulary: int = VOCABULARY,
    positions: Positions = Rope(), context: int = 64,
) -> Decoder:  # fmt: skip
    """Each of `attentions` is a block of the pattern."""
    blocks = tuple(Block(attention, FeedForward(hidden=16)) for attention in attentions)
    return Decoder(Embed(16, vocabulary), Stack(blocks, repeats, run), positions, head=Untied(), context=context)


def attention(key_heads: int = 2, group: int = 2, **settings: Any) -> Attention:
    return Attention(key_heads, group, head=8, **settings)


def shapes(model: Decoder) -> Any:
    """The parameters as boxed shapes: nothing is computed."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]


def initial(model: Decoder, seed: int = 0) -> Any:
    """Parameters drawn by NumPy: compiling a model's own `init` takes longer than most tests."""
    random = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        deviation = 1.0 if path[0].key == "embed" else 0.4
        around = 2.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(around + deviation * random.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, nn.meta.unbox(shapes(model)))


def prompts(*lengths: int, vocabulary: int = VOCABULARY) -> list[list[int]]:
    return [np.random.default_rng(n).integers(0, vocabulary, n).tolist() for n in lengths]


def cached(
    model: Decoder, params: Any, prompts: Sequence[Sequence[int]], max_tokens: int | None = 8,
    sampler: Sampler = GREEDY, *, seed: int = 0, rows: Sequence[int] | None = None, stops: Sequence[int] = (),
    most: int = 64, dtype: str = "float32",
) -> list[list[int]]:  # fmt: skip
    generation = Generation(
        model, prepare(model, params, dtype), prompts, max_tokens=max_tokens, sampler=sampler,
        key_B=row_keys(seed, range(len(prompts)) if rows is None else rows), stops=stops,
        vocabulary=model.embed.vocabulary, dtype=dtype,
    )  # fmt: skip
    texts: list[list[int]] = [[] for _ in prompts]
    while not generation.finished:
        for text, new in zip(texts, generation.advance(most), strict=True):
            text += new
    return texts


def uncached(model: Decoder, params: Any, prompts: Sequence[Sequence[int]], max_tokens: int = 8) -> list[list[int]]:
    """The best next token, each from a pass over the whole text so far: nothing is kept between tokens."""
    longest = max(map(len, prompts)) + max_tokens
    whole = jax.jit(lambda params, ids_BT: model.apply({"params": params}, ids_BT)[0].argmax(-1))
    ids_BT = np.zeros((len(prompts), longest), np.int32)  # what follows the text cannot be seen from it
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt)] = prompt
    for step in range(max_tokens):
        best_BT = np.asarray(whole(params, ids_BT[:, :-1]))  # the last one is not read
        for row, prompt in enumerate(prompts):
            ids_BT[row, len(prompt) + step] = best_BT[row, len(prompt) + step - 1]
    return [ids_BT[row, len(p) : len(p) + max_tokens].tolist() for row, p in enumerate(prompts)]


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    return SimpleNamespace(
        decoder=decoder, attention=attention, shapes=shapes, initial=initial, prompts=prompts, cached=cached,
        uncached=uncached, VOCABULARY=VOCABULARY, GREEDY=GREEDY, Best=Best,
    )  # fmt: skip
