"""Masked tokens: the loss of transformers' BertForMaskedLM on the same batch, and what is refused."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm_jax.core.errors import InputError
from llm_jax.data.noising import Masked
from llm_jax.data.presentation import Vocabulary
from llm_jax.interop.families.bert import BERT
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Transformed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.masked import MaskedTokens
from llm_jax.text.recipes import Bytes

from ..interop.torch_tensors import drawn, imported, saved

TOKENIZER = Bytes().train([])


def batch(rows: int = 3, length: int = 20) -> Any:
    """Rows of letters with padding after them, masked."""
    rng, shape = np.random.default_rng(0), (rows, length)
    real = np.arange(length)[None] < rng.integers(8, length, rows)[:, None]
    given = dict(
        tokens_BT=np.where(real, rng.integers(97, 123, shape), TOKENIZER.padding).astype(np.int32),
        segment_BT=np.where(real, 0, -1).astype(np.int32),
        position_BT=np.where(real, np.arange(length)[None], 0).astype(np.int32),
    )
    return Masked(0.3)(given, length, Vocabulary(TOKENIZER), [(0, row) for row in range(rows)])


def test_the_loss_is_berts(tmp_path):
    settings: Any = dict(
        vocab_size=TOKENIZER.vocabulary, num_hidden_layers=2, hidden_size=16, intermediate_size=20,
        num_attention_heads=2, max_position_embeddings=32, attn_implementation="eager",
    )  # fmt: skip
    theirs = drawn(transformers.BertForMaskedLM(transformers.BertConfig(**settings)), 0)
    model, params = imported(BERT, *saved(theirs, tmp_path))
    made = batch()
    chosen = made["weight_BT"] > 0
    labels = torch.tensor(np.where(chosen, made["targets_BT"], -100)).long()
    with torch.no_grad():
        said = theirs(
            torch.tensor(made["tokens_BT"]).long(), attention_mask=torch.tensor(made["segment_BT"] == 0), labels=labels
        )
    sums = jax.jit(lambda params, batch: MaskedTokens()(model, params, None, batch, None))(params, made)
    assert float(sums["weight"]) == chosen.sum() > 5
    np.testing.assert_allclose(sums["loss"] / sums["weight"], said.loss.item(), rtol=1e-4)
    right = (said.logits.argmax(-1).numpy() == made["targets_BT"])[chosen].sum()
    assert float(sums["correct"]) == right
    assert set(sums) == {"weight", "loss", "correct"}


def encoder(head: Any = None) -> Encoder:
    block = Block(Attention(1, head=8, mask=Full()), FeedForward(8))
    return Encoder(Embed(8, TOKENIZER.vocabulary), Stack((block,), 1), head=head)


def test_a_row_of_several_documents_is_as_if_they_were_alone():
    model, made = encoder(Transformed()), batch(2, 16)
    params = nn.meta.unbox(model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    sums = jax.jit(lambda batch: MaskedTokens()(model, params, None, batch, None))
    one, two = ({name: array[i : i + 1] for name, array in made.items()} for i in range(2))
    together = {name: np.concatenate([one[name], two[name]], 1) for name in made}
    together["segment_BT"][:, 16:] += 1 * (together["segment_BT"][:, 16:] == 0)
    for name, value in sums(together).items():
        np.testing.assert_allclose(value, sums(one)[name] + sums(two)[name], rtol=1e-5, err_msg=name)


def test_refusals():
    plain: Any = {"targets_BT": 0, "bytes_BT": 0}
    decoder = Decoder(Embed(8, 13), Stack((Block(Attention(1, head=8), FeedForward(8)),), 1))
    with pytest.raises(InputError, match="model must be an Encoder"):
        MaskedTokens()(decoder, {}, None, plain, None)
    with pytest.raises(InputError, match=r"set data.presentation=Masked\(\)"):
        MaskedTokens()(encoder(), {}, None, plain, None)
    params = nn.meta.unbox(encoder().init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    with pytest.raises(InputError, match=r"give it model.head, such as Transformed\(\)"):
        MaskedTokens()(encoder(), params, None, batch(), None)
