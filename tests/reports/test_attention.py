"""Attention maps beside those of transformers (`output_attentions`), and the figure."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
import transformers

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Rendering
from llm_jax.interop.families.bert import BERT
from llm_jax.interop.families.gemma import GEMMA2
from llm_jax.interop.families.llama import LLAMA
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import SlidingWindow
from llm_jax.layers.positions import Alibi
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Classifier
from llm_jax.models.stack import Stack
from llm_jax.models.word2vec import Word2Vec
from llm_jax.reports.attention import AttentionMaps, attention_maps, draw, spelt
from llm_jax.text.recipes import Bytes

from ..interop.torch_tensors import begun, drawn, imported, saved

IDS = [5, 9, 3, 30, 7, 7, 12]
SMALL = dict(vocab_size=31, num_hidden_layers=2, intermediate_size=14, max_position_embeddings=24, hidden_size=16)
CASES = [
    (LLAMA, "LlamaForCausalLM", dict(num_attention_heads=4, num_key_value_heads=2)),
    (BERT, "BertModel", dict(num_attention_heads=2, type_vocab_size=2)),
    (GEMMA2, "Gemma2ForCausalLM", dict(num_attention_heads=4, num_key_value_heads=2, head_dim=6, sliding_window=3)),
]


@pytest.mark.parametrize(("family", "kind", "given"), CASES, ids=[kind for _, kind, _ in CASES])
def test_the_weights_are_theirs(family, kind, given, tmp_path):
    cls: Any = getattr(transformers, kind)
    model, params = imported(family, *saved(drawn(cls(cls.config_class(**SMALL | given)), 3), tmp_path))
    theirs = cls.from_pretrained(tmp_path, attn_implementation="eager")  # with the buffers that are not saved
    types = [0, 0, 0, 1, 1, 1, 1] if family is BERT else None
    said = {} if types is None else dict(token_type_ids=torch.tensor([types]))
    with torch.no_grad():
        wanted = theirs(torch.tensor([IDS]), output_attentions=True, **said).attentions
    found = attention_maps(model, params, IDS, types)
    assert len(found) == len(wanted) == 2
    for ours, their in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, their[0].numpy(), atol=1e-5)
        assert np.ptp(ours, axis=-1).max() > 0.2


def small(**stack: Any) -> Decoder:
    block = Block(Attention(2, 2, 4, mask=SlidingWindow(3)), FeedForward(8))
    return Decoder(Embed(8, 272), Stack((block,), 2, **stack), Alibi(), context=16)


def test_weights_sum_to_one_over_what_the_mask_allows_in_a_stack_that_scans():
    model = small(run="scan", remat="full")
    params = begun(model)
    maps = attention_maps(model, params, IDS)
    for weight_NTS in maps:
        assert weight_NTS.shape == (4, 7, 7) and weight_NTS.dtype == np.float32
        np.testing.assert_allclose(weight_NTS.sum(-1), 1, atol=1e-6)
        back = np.arange(7)[:, None] - np.arange(7)[None]
        assert ((weight_NTS > 0) == ((back >= 0) & (back < 3))).all()
    judged = attention_maps(Classifier(model, 3), dict(backbone=params), IDS)
    assert all((a == b).all() for a, b in zip(maps, judged, strict=True))


def test_labels():
    tokenizer = Bytes().train([])
    ids = [tokenizer.special["bos"], *tokenizer.encode("a b\n")]
    assert spelt(tokenizer, ids) == ["<bos>", "a", "·", "b", "\\n"]


def test_the_figure_has_a_panel_for_each_head():
    even = np.full((2, 3, 3), 1 / 3, np.float32)
    one = np.eye(3, dtype=np.float32)[None]
    pixels = matplotlib.image.imread(io.BytesIO(draw([even, one], ["a$", "b", "c"], "title")), format="png")
    assert pixels.ndim == 3 and pixels.shape[0] > 250 and pixels[..., :3].min() < 0.1


def test_the_report():
    model, tokenizer = Decoder(Embed(8, 272), Stack((Block(Attention(2, 1, 4), FeedForward(8)),), 3)), Bytes().train([])
    experiment = SimpleNamespace(name="tiny", model=model, data=SimpleNamespace(rendering=Rendering()))
    finished: Any = SimpleNamespace(experiment=experiment, params=begun(model), tokenizer=tokenizer)
    finding = AttentionMaps("one two", most=2)(finished)
    assert finding.lines[0] == "attention to 'one two', 8 tokens, 3 layers"
    assert finding.figures["attention.png"].startswith(b"\x89PNG")
    maps = attention_maps(model, finished.params, [tokenizer.special["bos"], *tokenizer.encode("one two")])
    first = np.mean([[head[t, 0] for t in range(1, 8)] for layer in maps for head in layer])
    own = np.mean([[head[t, t] for t in range(1, 8)] for layer in maps for head in layer])
    before = np.mean([[head[t, t - 1] for t in range(1, 8)] for layer in maps for head in layer])
    told = f"  to the first token {first:.3f}, to itself {own:.3f}, to the token before {before:.3f}"
    assert finding.lines[1] == told


def test_refusals():
    model = small()
    with pytest.raises(InputError, match="17 tokens, and the model reads 1 to 16"):
        attention_maps(model, {}, [1] * 17)
    with pytest.raises(InputError, match="not of Word2Vec"):
        attention_maps(Word2Vec(Embed(8, 272)), {}, [1])
