"""Texts to vectors: as each alone, whoever else is in the batch."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.inference.language_model import LanguageModel
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Transformed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full
from llm_jax.layers.pooling import Mean, Normalized
from llm_jax.layers.positions import Learned
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier
from llm_jax.models.stack import Stack
from llm_jax.text.recipes import Bytes

TOKENIZER = Bytes().train([])
TEXTS = ["a", "hello there", "how are you today?", "b" * 40, "hello there"]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    block = Block(Attention(2, 1, 4, mask=Full()), FeedForward(16))
    model = Encoder(
        Embed(8, TOKENIZER.vocabulary), Stack((block,), 2), Learned(length=64), head=Transformed(),
        pooling=Normalized(Mean()), context=48,
    )  # fmt: skip
    params = jax.jit(lambda key: nn.meta.unbox(model.begin(key)))(jax.random.key(0))
    return LanguageModel(model, jax.tree.map(lambda p: p * 3, params), TOKENIZER)


def test_each_text_is_embedded_as_alone(lm):
    made_BD = lm.embed(TEXTS)
    assert isinstance(made_BD, np.ndarray) and made_BD.shape == (5, 8) and made_BD.dtype == np.float32
    special, run = TOKENIZER.special, jax.jit(lambda ids_BT: lm.model.apply({"params": lm.params}, ids_BT))
    for text, made_D in zip(TEXTS[:2], made_BD[:2], strict=True):
        x_BTD = run(jnp.asarray([[special["bos"], *TOKENIZER.encode(text), special["eos"]]]))
        mean_D = np.asarray(x_BTD)[0].mean(0)
        np.testing.assert_allclose(made_D, mean_D / np.linalg.norm(mean_D), atol=1e-5)
    np.testing.assert_array_equal(made_BD[1], made_BD[4])
    np.testing.assert_allclose(lm.embed(TEXTS[:1])[0], made_BD[0], atol=1e-6)
    assert np.abs(made_BD[0] - made_BD[1]).max() > 1e-3
    assert lm.embed([]).shape == (0, 8)


def test_each_text_is_classified_as_alone(lm):
    model = Classifier(lm.model.clone(head=None), classes=3)
    params = jax.jit(lambda key: nn.meta.unbox(model.begin(key)))(jax.random.key(1))
    judge = LanguageModel(model, jax.tree.map(lambda p: p * 3, params), TOKENIZER)
    share_BO = judge.classify(TEXTS)
    assert share_BO.shape == (5, 3) and share_BO.dtype == np.float32
    np.testing.assert_allclose(share_BO.sum(1), 1, rtol=1e-6)
    special, run = TOKENIZER.special, jax.jit(lambda ids_BT: model.apply({"params": judge.params}, ids_BT))
    for text, share_O in zip(TEXTS[:2], share_BO[:2], strict=True):
        score_BO = run(jnp.asarray([[special["bos"], *TOKENIZER.encode(text), special["eos"]]]))
        np.testing.assert_allclose(share_O, jax.nn.softmax(score_BO[0]), atol=1e-5)
    assert np.abs(share_BO[0] - share_BO[1]).max() > 1e-3
    assert repr(judge) == f"LanguageModel(Classifier(...), {TOKENIZER.vocabulary} tokens, float32)"
    with pytest.raises(InputError, match="model must be an Encoder"):
        judge.embed(TEXTS)
    with pytest.raises(InputError, match="model must be a Classifier"):
        lm.classify(TEXTS)


def test_an_encoder_scores_tokens_but_writes_none(lm):
    logits_BTV = lm.logits([[1, 2, 3]])
    assert logits_BTV.shape == (1, 3, TOKENIZER.vocabulary) and logits_BTV.dtype == np.float32
    with pytest.raises(InputError, match="model must be a Generator"):
        lm.generate(["hello"])


def test_what_cannot_be_embedded_is_refused(lm, tiny):
    with pytest.raises(InputError, match="text 1 has 62 tokens, and the model reads at most 48"):
        lm.embed(["short", "c" * 60])
    with pytest.raises(InputError, match="texts must be a list"):
        lm.embed("hello")
    bare = LanguageModel(lm.model, lm.params, TOKENIZER, bos=False, eos=False)
    with pytest.raises(InputError, match="text 0 is empty"):
        bare.embed([""])
    decoder = tiny.decoder(tiny.attention(), vocabulary=TOKENIZER.vocabulary)
    with pytest.raises(InputError, match="model must be an Encoder"):
        LanguageModel(decoder, {}, TOKENIZER).embed(["hello"])


def test_what_is_no_number_is_refused(lm):
    model = Classifier(lm.model.clone(head=None), classes=3)
    params = jax.jit(lambda key: nn.meta.unbox(model.begin(key)))(jax.random.key(1))
    damaged = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), params)
    with pytest.raises(
        InputError, match="what the model makes of text 0 is not finite: the model's parameters hold NaN"
    ):
        LanguageModel(model, damaged, TOKENIZER).classify(TEXTS)
    letter = TOKENIZER.encode("y")[0]
    table_VD = lm.params["embed"]["table"].at[letter].set(jnp.inf)
    here = LanguageModel(lm.model, {**lm.params, "embed": {**lm.params["embed"], "table": table_VD}}, TOKENIZER)
    assert np.isfinite(here.embed(["a"])).all()
    with pytest.raises(InputError, match="of text 1 is not finite"):
        here.embed(["a", "you"])


def test_token_ids_and_trusted_texts_are_embedded_as_they_are(lm):
    special = TOKENIZER.special
    tokenizer = TOKENIZER.having({"[CLS]": special["bos"], "[SEP]": special["eos"]})
    here, told = LanguageModel(lm.model, lm.params, tokenizer), []
    here.warn = told.append
    ids = [special["bos"], *b"a", special["eos"], *b"b", special["eos"]]
    (wanted_D,) = here.embed([ids])
    assert not told
    for text in ("a[SEP]b", "[CLS]a[SEP]b[SEP]"):  # those around the text are not put there twice
        np.testing.assert_array_equal(here.embed([text], special_tokens="parse")[0], wanted_D)
        assert np.abs(here.embed([text])[0] - wanted_D).max() > 1e-3
    assert len(told) == 1 and told[0].startswith("1 special token spelt in text ([SEP]) is read as ordinary text")
