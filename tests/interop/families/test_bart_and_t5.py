"""BART, Marian, T5 and mT5 beside `transformers`: scores of given targets, greedy texts; and back again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from llm_jax.core.errors import InputError
from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.sampling import Sampling
from llm_jax.interop.checkpoint import open_source
from llm_jax.interop.export import family_for
from llm_jax.interop.families.bart import BART, MARIAN
from llm_jax.interop.families.t5 import MT5, T5
from llm_jax.interop.family import Family
from llm_jax.interop.import_ import read
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.parallel.layout import Layout

from ..torch_tensors import close, comes_back, drawn, exported, imported, packed, padded, rows, saved

V, SOURCES, TARGETS, NEW = 29, [8, 3, 6], [5, 7, 2], 7
SIDES = dict(encoder_layers=1, decoder_layers=2, max_position_embeddings=20)
CASES: dict[str, tuple[Family, str, dict[str, Any]]] = dict(
    bart=(BART, "BartForConditionalGeneration", SIDES | dict(
        d_model=12, encoder_attention_heads=3, decoder_attention_heads=2, encoder_ffn_dim=10, decoder_ffn_dim=14,
        scale_embedding=True, pad_token_id=1, decoder_start_token_id=2,
    )),
    bart_unscaled=(BART, "BartForConditionalGeneration", SIDES | dict(
        d_model=15, encoder_layers=2, encoder_attention_heads=5, decoder_attention_heads=3, encoder_ffn_dim=7,
        decoder_ffn_dim=8, activation_function="relu", pad_token_id=1, decoder_start_token_id=3,
    )),
    marian=(MARIAN, "MarianMTModel", SIDES | dict(
        d_model=8, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=10, decoder_ffn_dim=10,
        scale_embedding=True, activation_function="swish", pad_token_id=1, decoder_start_token_id=1, eos_token_id=0,
    )),
    marian_unscaled=(MARIAN, "MarianMTModel", SIDES | dict(
        d_model=12, encoder_layers=2, decoder_layers=1, encoder_attention_heads=3, decoder_attention_heads=1,
        encoder_ffn_dim=7, decoder_ffn_dim=9, activation_function="relu", pad_token_id=28, decoder_start_token_id=28,
        eos_token_id=0,
    )),
    t5=(T5, "T5ForConditionalGeneration", dict(
        d_model=10, d_kv=3, d_ff=12, num_layers=2, num_decoder_layers=1, num_heads=3, decoder_start_token_id=0,
        relative_attention_num_buckets=8, relative_attention_max_distance=6,
    )),
    t5_1p1=(T5, "T5ForConditionalGeneration", dict(
        d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False, decoder_start_token_id=0,
    )),
    mt5=(MT5, "MT5ForConditionalGeneration", dict(
        d_model=8, d_kv=5, d_ff=12, num_layers=1, num_heads=1, relative_attention_num_buckets=12,
    )),
    mt5_deep=(MT5, "MT5ForConditionalGeneration", dict(
        d_model=9, d_kv=2, d_ff=7, num_layers=2, num_decoder_layers=1, num_heads=3, decoder_start_token_id=0,
        feed_forward_proj="relu", relative_attention_num_buckets=8, relative_attention_max_distance=7,
    )),
)  # fmt: skip


def theirs_of(case: str, seed: int = 0) -> Any:
    _, kind, settings = CASES[case]
    cls: Any = getattr(transformers, kind)
    ends = dict(forced_eos_token_id=None)
    theirs = cls(cls.config_class(vocab_size=V, **settings, **ends, attn_implementation="eager"))
    if case in (
        "t5_1p1",
        "mt5",
        "mt5_deep",
    ):  # their checkpoints have a table of their own there, though a new model has not
        theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(V, theirs.config.d_model))
    return drawn(theirs, seed)


def written(model: EncoderDecoder, params: Any, prompts: list[list[int]]) -> list[list[int]]:
    generation = Generation(
        model, prepare(model, params, jnp.float32), prompts, max_tokens=NEW, sampler=Sampling(temperature=0.0),
        key_B=row_keys(0, range(len(prompts))), stops=(), vocabulary=V, dtype=jnp.float32,
    )  # fmt: skip
    texts: list[list[int]] = [[] for _ in prompts]
    while not generation.finished:
        for text, new in zip(texts, generation.advance(), strict=True):
            text += new
    return texts


@pytest.mark.parametrize("case", CASES)
def test_a_model_is_theirs_padded_and_packed_and_comes_back(case, tmp_path):
    family, theirs = CASES[case][0], theirs_of(case, len(case))
    config, tensors = saved(theirs, tmp_path / "theirs")
    model, params = imported(family, config, tensors)
    source_BS, there_BS = rows(SOURCES, V, 1)
    target_BT, there_BT = rows(TARGETS, V, 2)
    source = dict(input_ids=torch.tensor(source_BS).long(), attention_mask=torch.tensor(there_BS))
    wanted = theirs(**source, decoder_input_ids=torch.tensor(target_BT).long()).logits

    @jax.jit
    def run(params, source_BS, source_at, target_BT, at):
        read = model.apply({"params": params}, source_BS, source_at, method="encode")
        return model.apply({"params": params}, target_BT, at, source=read)[0]

    ours = run(params, jnp.asarray(source_BS), padded(there_BS), jnp.asarray(target_BT), padded(there_BT))
    close(ours, wanted, there_BT)
    together = run(params, *packed(source_BS, there_BS), *packed(target_BT, there_BT))
    close(together[0], wanted[torch.tensor(there_BT).bool()])

    prompts = [row[there.astype(bool)].tolist() for row, there in zip(source_BS, there_BS, strict=True)]
    theirs.generation_config.eos_token_id = None
    texts = theirs.generate(**source, do_sample=False, num_beams=1, max_new_tokens=NEW)
    assert (texts[:, 0] == model.start).all()
    assert written(model, params, prompts) == texts[:, 1:].tolist()

    again = comes_back(family, model, params, tensors, tmp_path / "ours")
    close(again(**source, decoder_input_ids=torch.tensor(target_BT).long()).logits.detach(), wanted, within=1e-6)


@pytest.mark.parametrize("case", ["bart", "t5"])
def test_a_text_goes_on_with_the_token_that_is_forced(case, tmp_path):
    """What generation_config.json says of how a text begins is read, and written back to config.json."""
    theirs = theirs_of(case, 1)
    theirs.generation_config.forced_bos_token_id, theirs.generation_config.eos_token_id = 7, None
    theirs.save_pretrained(tmp_path)
    model, params = read(open_source(tmp_path), Layout(1))
    prompts = [[5, 6, 9, 3, 4], [8, 4, 11, 12, 13]]
    texts = theirs.generate(torch.tensor(prompts), do_sample=False, num_beams=1, max_new_tokens=NEW + 1)
    assert isinstance(model, EncoderDecoder) and model.opening() == (model.start, 7)
    assert texts[:, :2].tolist() == [[model.start, 7]] * 2
    assert written(model, params, prompts) == texts[:, 2:].tolist()
    assert family_for(model, case)[2]["forced_bos_token_id"] == 7


COPIES = [
    ("bart", "lm_head.weight", "model.shared.weight"),
    ("bart", "model.decoder.embed_tokens.weight", "model.shared.weight"),
    ("marian", "model.encoder.embed_tokens.weight", "model.shared.weight"),
    ("t5", "lm_head.weight", "shared.weight"),
    ("t5_1p1", "encoder.embed_tokens.weight", "shared.weight"),
    ("mt5", "decoder.embed_tokens.weight", "shared.weight"),
]


@pytest.mark.parametrize(("case", "name", "original"), COPIES)
def test_what_should_be_a_copy_and_is_none_is_not_dropped(case, name, original, tmp_path):
    family = CASES[case][0]
    config, tensors = saved(theirs_of(case), tmp_path)
    imported(family, config, tensors | {name: tensors[original]})
    with pytest.raises(InputError, match=f"{name} is no copy of {original}, .*: this model has one for both"):
        imported(family, config, tensors | {name: tensors[original] + np.float32(0.1)})


def test_a_bart_without_a_bias_is_written_without_a_prefix(tmp_path):
    """As its authors published it: `BartModel`."""
    settings = CASES["bart"][2]
    theirs = drawn(transformers.BartModel(transformers.BartConfig(vocab_size=V, **settings)), 0)
    config, tensors = saved(theirs, tmp_path / "theirs")
    model, params = imported(BART, config, tensors)
    assert "head" not in params
    comes_back(BART, model, params, tensors, tmp_path / "ours")


def test_what_is_not_covered_is_refused(tmp_path):
    config, _ = saved(theirs_of("marian"), tmp_path)
    with pytest.raises(InputError, match="share_encoder_decoder_embeddings=False, which is not covered"):
        MARIAN.model(config | dict(share_encoder_decoder_embeddings=False))
    with pytest.raises(InputError, match="normalize_before=True, which is not covered"):
        MARIAN.model(config | dict(normalize_before=True))
    model = MARIAN.model(config)
    with pytest.raises(InputError, match=r"model\.encoder\.positions=Sinusoidal\(\) cannot be written for this family"):
        exported(BART, model, {})
    with pytest.raises(InputError, match="T5 is an EncoderDecoder with RelativeBias and RMSNorm"):
        exported(T5, model, {})


def test_what_transformers_writes_again_of_version_1p1_keeps_its_table(tmp_path):
    """It then says `tie_word_embeddings` whatever the model has."""
    config, tensors = saved(theirs_of("t5_1p1"), tmp_path)
    assert config["tie_word_embeddings"] and not config["scale_decoder_outputs"]
    assert not np.array_equal(tensors["lm_head.weight"], tensors["shared.weight"])
    model = T5.model(config)
    assert isinstance(model, EncoderDecoder) and not model.head.ties()
