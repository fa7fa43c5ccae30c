"""What a published folder says of its tokenizer: what that does to a text, whatever was set when it was saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.numpy
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors

import llm_jax
from llm_jax.core.errors import InputError
from llm_jax.inference.language_model import LanguageModel
from llm_jax.interop.checkpoint import GENERATION, INDEX, SINGLE, Folder, SafeTensors
from llm_jax.interop.export import export_model
from llm_jax.interop.import_ import import_model, load
from llm_jax.interop.tokenizers.import_ import assemble
from llm_jax.layers.embedding import Embed
from llm_jax.text import Bytes, ChatTemplate
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
        assert lm.bos and lm._prompts(["the value"], "text") == [theirs("the value").input_ids]


# -------------------------------------------------------------------------------- ids beyond the model's embedding


def published_model(source: Path, folder: Path, missing: int, added: Any = None) -> Path:
    """A small model of the tokenizer in `source`, to which `added` adds tokens, with `missing` rows fewer than ids."""
    shutil.copytree(source, folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    if added is not None:
        added(tokenizer)
        tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape: Any = dict(
        vocab_size=len(tokenizer) - missing, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    if "gemma" in str(source):
        transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**shape)).save_pretrained(folder)
    else:
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).save_pretrained(folder)
    (folder / GENERATION).unlink(missing_ok=True)
    return folder


def image_token(tokenizer: Any) -> None:
    """As Gemma 3 1B has one: its model of text alone has no row for it."""
    tokenizer.add_special_tokens(dict(extra_special_tokens=["<image_soft_token>"]))


@pytest.mark.parametrize("kind", ["gemma"])
def test_special_tokens_without_a_row_are_never_written_and_reported_once(published, kind, tmp_path, caplog):
    folder = published_model(published[kind], tmp_path / kind, missing=1, added=image_token)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert tokenizer.convert_tokens_to_ids("<image_soft_token>") == theirs.config.vocab_size == len(tokenizer) - 1

    import_model(folder, tmp_path / "run")
    assert caplog.text.count("1 special tokens have no row in the model's embedding of") == 1
    assert caplog.text.count("<image_soft_token>") == 1
    export_model(tmp_path / "run", tmp_path / "out")
    ids = tokenizer("the value of <image_soft_token>").input_ids[:-1]
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits.numpy()
    for source in (folder, tmp_path / "run", tmp_path / "out"):
        lm = load(source)
        assert lm.tokenizer.vocabulary <= lm.model.words() and "<image_soft_token>" not in lm.tokenizer.special
        np.testing.assert_allclose(lm.logits([ids]), wanted, atol=2e-4)
        (text,) = lm.generate(["the value of <image_soft_token>"], max_tokens=8)
        assert "<image_soft_token>" not in text
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) <= theirs.config.vocab_size


def test_a_unigram_list_ends_with_the_embedding(published):
    """Its ids are places in a list, so special tokens at the end of that have places as well."""
    rust = json.loads((published["t5"] / "tokenizer.json").read_text())
    last = len(rust["model"]["vocab"])
    rust["model"]["vocab"].append(["<image>", 0.0])
    rust["added_tokens"] = [t for t in rust["added_tokens"] if t["id"] < last]
    rust["added_tokens"].append(dict(rust["added_tokens"][0], id=last, content="<image>"))
    whole, _ = assemble(rust, {}, None)
    cut, _ = assemble(rust, {}, None, rows=last)
    assert (whole.vocabulary, cut.vocabulary) == (last + 1, last) and "<image>" not in cut.special
    assert cut.encode("the value of <image>") == whole.encode("the value of <image>")


def refused(folder: Path, tmp_path: Path, message: str) -> None:
    """By `load` and by `import`, with the same message of one line."""
    said = []
    for attempt in (lambda: load(folder), lambda: import_model(folder, tmp_path / "refused")):
        with pytest.raises(InputError, match=message) as error:
            attempt()
        said.append(str(error.value))
    assert said[0] == said[1] and "\n" not in said[0]
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("kind", ["gemma", "qwen", "llama2"])
def test_an_ordinary_token_without_a_row_is_refused(published, kind, tmp_path):
    words = published_model(published[kind], tmp_path / "words", 1, lambda t: t.add_tokens(["covid"]))
    refused(words, tmp_path, r"1 tokens of text, 'covid' \(id \d+\) first, .*: its embedding has \d+; use")
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(words)
    theirs.resize_token_embeddings(theirs.config.vocab_size + 1)  # the message's own advice
    theirs.save_pretrained(words)
    assert load(words).generate(["the value"], max_tokens=2)


def test_a_model_with_fewer_rows_than_pieces_is_refused(published, tmp_path):
    refused(
        published_model(published["mistral"], tmp_path / "m", 40), tmp_path, r"has 40 tokens of text, '.*' \(id \d+\)"
    )


def test_a_bos_without_a_row_is_refused_where_texts_begin_with_it(published, tmp_path):
    def begins(tokenizer: Any) -> None:
        tokenizer.add_special_tokens(dict(bos_token="<|begin|>"))
        new = [("<|begin|>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", None, new)

    folder = published_model(published["qwen"], tmp_path / "qwen", 1, begins)
    refused(folder, tmp_path, r"puts the id \d+ before a text, for which the model has no row: its embedding has")


def test_a_translator_that_begins_with_an_id_without_a_row_is_refused(published, tmp_path):
    sizes: Any = dict(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_decoder_layers=1, num_heads=2)
    config: Any = transformers.T5Config(vocab_size=640, **sizes)
    config.decoder_start_token_id = 640
    shutil.copytree(published["t5"], tmp_path / "t5")
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", tmp_path, r"begins a text with the id 640 .* no row: its embedding has 640")


def test_a_language_model_has_a_row_for_each_id():
    model: Any = llm_jax.get("small_gpt").model
    tokenizer = Bytes().train([])
    with pytest.raises(InputError, match=r"the tokenizer has \d+ ids, and the model's embedding 200 rows"):
        LanguageModel(model.clone(embed=Embed(8, 200)), {}, tokenizer)


# ------------------------------------------------------------------------------------------------- a part and the whole


def drawn(folder: Path, seed: int, **how: Any) -> dict[str, np.ndarray]:
    """The tensors of a small model that is written to `folder`."""
    torch.manual_seed(seed)
    shape: Any = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=300)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, max_position_embeddings=32))
    model.save_pretrained(folder, **how)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def test_a_whole_file_goes_before_a_stale_index(tmp_path, monkeypatch, caplog):
    """As in transformers: what is left of an older, sharded model says nothing of the whole one beside it."""
    monkeypatch.setattr(Folder, "tokenizer", lambda self: (Bytes().train(["a"]), ChatTemplate()))
    monkeypatch.setattr(Folder, "_framed", [[256, 97], [97], [256, 97, 97]])
    drawn(tmp_path / "model", seed=1, max_shard_size="10KB")
    assert len([*(tmp_path / "model").glob("model-*.safetensors")]) > 1
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    tensors = drawn(tmp_path / "whole", seed=2)
    shutil.copy(tmp_path / "whole" / SINGLE, tmp_path / "model" / SINGLE)
    ids = np.arange(12).reshape(2, 6)
    for left in (len(shards), 1, 0):  # all of the older files, some, none
        for path in shards[left:]:
            path.unlink(missing_ok=True)
        theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
        assert torch.equal(theirs.lm_head.weight, torch.tensor(tensors["lm_head.weight"]))
        with torch.no_grad():
            wanted = theirs(torch.tensor(ids)).logits.numpy()
        caplog.clear()
        np.testing.assert_allclose(load(tmp_path / "model").logits(ids), wanted, atol=1e-5)
        assert caplog.text.count(f"{SINGLE} is read, and {INDEX} beside it is not") == 1


def test_each_tensor_is_read_from_the_file_that_the_index_names(tmp_path):
    """A file that was taken from another download is no part of this one."""
    folder = tmp_path / "model"
    tensors = drawn(folder, seed=1, max_shard_size="10KB")
    placed = json.loads((folder / INDEX).read_text())["weight_map"]
    first, *_, last = sorted(set(placed.values()))
    moved = next(name for name, file in placed.items() if file == last)
    other = safetensors.numpy.load_file(folder / first)
    safetensors.numpy.save_file(other | {moved: tensors[moved] * 0}, folder / first)
    np.testing.assert_array_equal(SafeTensors(folder).read(moved), tensors[moved])
    assert sorted(SafeTensors(folder).names()) == sorted(tensors)
    safetensors.numpy.save_file(other, folder / last)
    with pytest.raises(InputError, match=rf"{last} lacks .*, which {INDEX} says is there: download both again"):
        SafeTensors(folder)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_an_adapter_is_no_whole_model(tmp_path):
    """transformers would load its base model, which may be another than what lies beside the adapter."""
    folder = tmp_path / "model"
    drawn(folder, seed=1)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    for missing in ((), ("config.json", SINGLE)):
        for name in missing:
            (folder / name).unlink()
        refused(folder, tmp_path, r"holds an adapter \(adapter_config.json\), which belongs on a base model: merge")
