"""BERT and RoBERTa beside `transformers`: vectors, scores of masked tokens and of classes; and back again."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from llm_jax.core.errors import InputError
from llm_jax.interop.checkpoint import open_source
from llm_jax.interop.export import family_for, write
from llm_jax.interop.families.bert import BERT, ROBERTA
from llm_jax.interop.import_ import model_of, read
from llm_jax.layers.norms import RMSNorm
from llm_jax.layers.pooling import Mean, Normalized, Pooler
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier

from ..torch_tensors import close, comes_back, drawn, exported, imported, packed, padded, rows, saved

LENGTHS = [9, 4, 7]
CASES = [
    (BERT, "BertModel", dict(num_attention_heads=3, hidden_size=12, type_vocab_size=2)),
    (BERT, "BertForMaskedLM", dict(num_attention_heads=1, hidden_size=8, hidden_act="gelu_new", type_vocab_size=3)),
    (BERT, "BertForSequenceClassification", dict(num_attention_heads=2, hidden_size=8, num_labels=3)),
    (ROBERTA, "RobertaModel", dict(num_attention_heads=2, hidden_size=8, type_vocab_size=1, layer_norm_eps=1e-5)),
    (ROBERTA, "RobertaForMaskedLM", dict(num_attention_heads=5, hidden_size=10, hidden_act="relu", type_vocab_size=1)),
    (ROBERTA, "RobertaForSequenceClassification", dict(num_attention_heads=2, hidden_size=8, pad_token_id=0)),
]  # fmt: skip


def theirs_of(kind: str, seed: int, **settings: Any) -> Any:
    shape = dict(vocab_size=31, num_hidden_layers=2, intermediate_size=14, max_position_embeddings=24)
    cls: Any = getattr(transformers, kind)
    config = cls.config_class(**shape | settings, attn_implementation="eager")
    return drawn(cls(config), seed)


@pytest.mark.parametrize(("family", "kind", "settings"), CASES, ids=[kind for _, kind, _ in CASES])
def test_a_model_is_theirs_padded_and_packed_and_comes_back(family, kind, settings, tmp_path):
    theirs = theirs_of(kind, len(kind), **settings)
    config, tensors = saved(theirs, tmp_path / "theirs")
    model, params = imported(family, config, tensors)
    ids_BT, real_BT = rows(LENGTHS, 31, len(kind))
    ids_BT = np.where(real_BT, ids_BT, theirs.config.pad_token_id).astype(np.int32)
    types_BT = np.random.default_rng(1).integers(0, theirs.config.type_vocab_size, ids_BT.shape).astype(np.int32)
    said = theirs(
        torch.tensor(ids_BT).long(), attention_mask=torch.tensor(real_BT), token_type_ids=torch.tensor(types_BT).long()
    )

    @jax.jit
    def run(params, ids_BT, at, types_BT):
        x = model.apply({"params": params}, ids_BT, at, types_BT)
        if not isinstance(model, Encoder):
            return x
        if model.head is not None:
            return model.apply({"params": params}, x, method="score")
        return x, model.apply({"params": params}, x, at, method="pooled")

    ours = run(params, jnp.asarray(ids_BT), padded(real_BT), jnp.asarray(types_BT))
    if isinstance(ours, tuple):
        close(ours[0], said.last_hidden_state, real_BT)
        close(ours[1], said.pooler_output)
        ours, wanted = ours[0], said.last_hidden_state
    else:
        wanted = said.logits
        close(ours, wanted, real_BT if wanted.ndim == 3 else None)
    if wanted.ndim == 3:
        together, at = packed(ids_BT, real_BT)
        apart = run(params, together, at, packed(types_BT, real_BT)[0])
        apart = apart[0] if isinstance(apart, tuple) else apart
        close(apart[0], wanted[torch.tensor(real_BT).bool()])

    again = comes_back(family, model, params, tensors, tmp_path / "ours")
    after = again(
        torch.tensor(ids_BT).long(), attention_mask=torch.tensor(real_BT), token_type_ids=torch.tensor(types_BT).long()
    )
    close(after[0].detach(), said[0], real_BT if wanted.ndim == 3 else None, within=1e-6)


def test_what_is_not_covered_is_refused(tmp_path):
    config, tensors = saved(theirs_of("BertModel", 0, num_attention_heads=2, hidden_size=8), tmp_path)
    with pytest.raises(InputError, match="no hidden_size"):
        BERT.model({"architectures": ["BertModel"]})
    with pytest.raises(InputError, match="position_embedding_type='relative_key', which is not covered"):
        BERT.model(config | dict(position_embedding_type="relative_key"))
    for kind in ("BertForPreTraining", "BertForTokenClassification", "BertForQuestionAnswering"):
        told = f"architecture {kind}, which is not covered: it must be BertModel, BertForMaskedLM or BertForSequenceC"
        with pytest.raises(InputError, match=told):
            BERT.model(config | dict(architectures=[kind]))
    with pytest.raises(InputError, match=r"no activation named 'gelu_10'"):
        BERT.model(config | dict(hidden_act="gelu_10"))
    with pytest.raises(InputError, match=r"2 tensors that the model has no place for: encoder\.layer\.1\.odd, odd"):
        imported(BERT, config, tensors | {"odd": np.zeros(1), "encoder.layer.1.odd": np.zeros(1)})
    model, params = imported(BERT, config, tensors)
    with pytest.raises(InputError, match=r"model\.norm=RMSNorm\(.*cannot be written for this family, which has NoNorm"):
        exported(BERT, model.clone(norm=RMSNorm()), params)


def test_positions_that_a_tokenizer_would_shift_are_not_written(tmp_path):
    """RoBERTa's positions leave out its padding token, which must be the tokenizer's padding."""
    settings = dict(num_attention_heads=2, hidden_size=8, type_vocab_size=1)
    config, tensors = saved(theirs_of("RobertaModel", 0, **settings), tmp_path)
    model, params = imported(ROBERTA, config, tensors)
    write(model, params, tmp_path / "same", dict(pad_token_id=1), likely="roberta")
    for pad in (0, None):
        with pytest.raises(InputError, match="without the token 1, which is not this tokenizer's padding"):
            write(model, params, tmp_path / "other", dict(pad_token_id=pad), likely="roberta")


def test_a_sentence_model_has_no_use_for_the_pooler(tmp_path):
    config, tensors = saved(theirs_of("BertModel", 0, num_attention_heads=2, hidden_size=8), tmp_path)
    model = BERT.model(config).clone(pooling=Normalized(Mean()), context=10)
    family = dataclasses.replace(BERT, model=lambda config: model)
    assert "pooling" not in imported(family, config, tensors)[1]
    assert BERT.config(model)["max_position_embeddings"] == 24


def test_the_names_of_its_first_years_are_read(tmp_path):
    _, tensors = saved(theirs_of("BertForMaskedLM", 0, num_attention_heads=2, hidden_size=8), tmp_path)
    now = read(open_source(tmp_path))[1]
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert old.keys() != tensors.keys()
    safetensors.numpy.save_file(old, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read(open_source(tmp_path))[1], now)


@pytest.mark.parametrize(("family", "kind", "head", "inside"), [
    (BERT, "BertForMaskedLM", "cls.predictions", "bert"), (ROBERTA, "RobertaForMaskedLM", "lm_head", "roberta"),
])  # fmt: skip
def test_what_should_be_a_copy_and_is_none_is_not_dropped(family, kind, head, inside, tmp_path):
    config, tensors = saved(theirs_of(kind, 0, num_attention_heads=2, hidden_size=8, type_vocab_size=1), tmp_path)
    originals = {
        f"{head}.decoder.weight": f"{inside}.embeddings.word_embeddings.weight", f"{head}.decoder.bias": f"{head}.bias",
    }  # fmt: skip
    imported(family, config, tensors | {name: tensors[original] for name, original in originals.items()})
    for name, original in originals.items():
        with pytest.raises(InputError, match=f"{name} is no copy of {original}, .*: this model has one for both"):
            imported(family, config, tensors | {name: tensors[original] + np.float32(0.1)})


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "RobertaModel"])
@pytest.mark.parametrize("sentences", [False, True])
def test_a_classifier_on_an_imported_encoder_has_a_family(kind, sentences):
    """What the encoder pools and scores by itself is nothing to a classifier on it."""
    family = "roberta" if kind.startswith("Roberta") else "bert"
    config = theirs_of(kind, 0, num_attention_heads=2, hidden_size=8).config.to_dict() | dict(architectures=[kind])
    encoder = model_of(config)
    if sentences:
        encoder = encoder.clone(pooling=Normalized(Mean()), context=10, head=None)
    name, _, written = family_for(Classifier(encoder, 3, Pooler()), likely=family)
    assert (name, written["architectures"]) == (family, [f"{family.capitalize()}ForSequenceClassification"])
    with pytest.raises(InputError, match=r"model\.pooling=Mean\(\) cannot be written for this family, which has Pool"):
        family_for(Classifier(encoder, 3, Mean()), likely=family)
