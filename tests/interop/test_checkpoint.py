"""What a published folder says of its tokenizer: what that does to a text, whatever was set when it was saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

from llm_jax.core.tables import InputError
from llm_jax.interop.checkpoint import GENERATION, Folder
from llm_jax.interop.imports import import_model, load
from llm_jax.text.tokenizer import Tokenizer

from .conftest import KINDS

STORED = dict(
    left=dict(padding=dict(direction="left", length=16)),
    right=dict(padding=dict(direction="right", length=16)),
    longest=dict(padding=dict(direction="left", pad_to_multiple_of=8)),
    cut=dict(truncation=dict(max_length=3)),
    both=dict(padding=dict(direction="right", length=8), truncation=dict(max_length=8)),
)


def copied(source: Path, folder: Path) -> Path:
    """A copy of a tokenizer's folder, with as much of a config.json as `Folder` needs."""
    shutil.copytree(source, folder)
    (folder / "config.json").write_text(json.dumps(dict(model_type="llama")))
    safetensors.numpy.save_file({}, folder / "model.safetensors")
    return folder


def stored(folder: Path, padding: dict[str, Any] | None = None, truncation: dict[str, Any] | None = None) -> None:
    """As `save_pretrained` leaves a tokenizer.json after a call with padding or truncation."""
    rust = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    if padding is not None:
        pad_id = transformers.AutoTokenizer.from_pretrained(folder).pad_token_id or 0
        rust.enable_padding(pad_id=pad_id, pad_token=rust.id_to_token(pad_id), **padding)
    if truncation is not None:
        rust.enable_truncation(**truncation)
    rust.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_truncation_that_were_stored_change_nothing(published, kind, tmp_path):
    plain = copied(published[kind], tmp_path / "plain")
    theirs = transformers.AutoTokenizer.from_pretrained(plain)
    texts = ["the value of a statement", "a", "none of these, but the others"]
    for name, settings in STORED.items():
        folder = copied(published[kind], tmp_path / name)
        stored(folder, **settings)
        found, (ours, _) = Folder(folder), Folder(folder).tokenizer()
        bos, eos = (ours.special[n] if adds else None for n, adds in (("bos", found.adds_bos), ("eos", found.adds_eos)))
        for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
            assert ids == ours.encode(text)
            assert [i for i in (bos, *ids, eos) if i is not None] == theirs(text).input_ids, name


def test_a_tokenizer_that_pads_is_taken_without_its_padding():
    rust = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    rust.enable_padding(pad_id=1, pad_token="b", length=6, direction="left")
    rust.enable_truncation(1)
    ours = Tokenizer(rust, {"bos": 3}, "pieces")
    assert ours.encode("abaab") == [2, 0, 2] and ours.encode_batch(["ab", "aa"]) == [[2], [0, 0]]
    assert ours.spans("aab") == ([0, 2], [1, 3])
    assert rust.encode("abaab").ids == [1, 1, 1, 1, 1, 2], "the caller's own is as it was"


def test_what_stands_around_a_text_is_asked_of_a_text_that_has_tokens(tmp_path):
    """Bases of DNA, of which "a" is none: everything around it stood before it and after it."""
    rust = tokenizers.Tokenizer(models.BPE(vocab={"A": 0, "C": 1, "G": 2, "T": 3, "<s>": 4, "</s>": 5}, merges=[]))
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.add_special_tokens(["<s>", "</s>"])
    rust.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 4)])
    (tmp_path / "source").mkdir()
    rust.save(str(tmp_path / "source" / "tokenizer.json"))
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(dict(bos_token="<s>", eos_token="</s>")))
    found = Folder(copied(tmp_path / "source", tmp_path / "dna"))
    assert found.adds_bos and not found.adds_eos


def test_what_a_tokenizer_adds_that_is_neither_bos_nor_eos_is_refused(published, tmp_path):
    folder = copied(published["bert"], tmp_path / "bert")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | dict(eos_token="[MASK]")))
    found = Folder(folder)
    assert found.adds_bos
    with pytest.raises(
        InputError, match=r"puts the ids 3 after a text, but the token eos is 4: .* set eos_token"
    ) as said:
        _ = found.adds_eos
    assert "\n" not in str(said.value)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | dict(eos_token="[SEP]")))
    assert Folder(folder).adds_eos, "the message's own advice"


def test_a_decoder_that_was_saved_with_left_padding_begins_its_texts(published, tmp_path):
    """Prompts of `load` and of a run begin with `bos`, as they do when transformers reads the folder."""
    folder = tmp_path / "published"
    shutil.copytree(published["llama3"], folder)
    theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
    sizes: Any = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    shape = transformers.LlamaConfig(vocab_size=len(theirs), max_position_embeddings=32, **sizes)
    transformers.LlamaForCausalLM(shape).save_pretrained(folder)
    stored(folder, padding=dict(direction="left", length=16), truncation=dict(max_length=16))
    (folder / GENERATION).unlink()
    import_model(folder, tmp_path / "run")
    for path in (folder, tmp_path / "run"):
        lm = load(path)
        assert lm.bos and lm._prompt("the value") == theirs("the value").input_ids
