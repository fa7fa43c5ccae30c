"""Small tokenizers of every published kind, each as the folder that `save_pretrained` would leave."""
# ruff: noqa: RUF001  (DeepSeek's tokens have wide bars)

import json
import pydoc_data.topics
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm_jax.interop.tokenizers.import_ import import_tokenizer

CORPUS = [text for _, text in sorted(pydoc_data.topics.topics.items())][:12] + ["déjà vu, naïve café; ½ 日本語 🙂 " * 9]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TURNS = ["<|im_start|>", "<|im_end|>"]
ADDED = ["<think>", "</think>", "<tool_response>", "</tool_response>"]  # as Qwen 3 and GLM have them: not special
SPECIAL = ["<|user|>", "<|assistant|>", "<|observation|>", "<|system|>", "[gMASK]", "<sop>"]  # GLM's, then DeepSeek's
SPECIAL += ["<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"]
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sentencepiece(first: list[str], **parts) -> tokenizers.Tokenizer:
    """BPE of characters with bytes for those without a piece."""
    rust = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    for name, part in parts.items():
        setattr(rust, name, part)
    rust.train_from_iterator(
        CORPUS[:-1],
        trainers.BpeTrainer(vocab_size=900, special_tokens=[*first, *BYTES], show_progress=False),
    )
    return without_bytes(rust)


def without_bytes(rust: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The trainer only numbers special tokens first; bytes are none."""
    content = json.loads(rust.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in BYTES]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def byte_level(vocab_size: int = 700, first: list[str] | None = None, **parts) -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(models.BPE())
    for name, part in parts.items():
        setattr(rust, name, part)
    rust.decoder = decoders.ByteLevel()
    rust.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=first or [], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return rust


def smollm() -> tuple[tokenizers.Tokenizer, dict]:
    digits = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    rust = byte_level(first=["<|endoftext|>", *TURNS, "<file_sep>"], pre_tokenizer=digits)
    return rust, dict(bos_token=TURNS[0], eos_token=TURNS[1], pad_token=TURNS[1], unk_token="<|endoftext|>")


def qwen() -> tuple[tokenizers.Tokenizer, dict]:
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust = byte_level(pre_tokenizer=split, normalizer=normalizers.NFC())
    rust.add_special_tokens(["<|endoftext|>", *TURNS])
    rust.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in ("<tool_call>", "<think>", "</think>")])
    return rust, dict(eos_token=TURNS[1], pad_token="<|endoftext|>")


def llama3() -> tuple[tokenizers.Tokenizer, dict]:
    rust, _ = qwen()
    content = json.loads(rust.to_str())
    content["model"]["ignore_merges"], content["normalizer"], content["added_tokens"] = True, None, []
    rust = tokenizers.Tokenizer.from_str(json.dumps(content))
    named = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "assistants"]
    rust.add_special_tokens(named)  # the last one is a word of the texts, which could be looked up whole
    (first,) = [rust.token_to_id(named[0])]
    rust.post_processor = processors.TemplateProcessing(f"{named[0]} $A", None, [(named[0], first)])
    return rust, dict(bos_token=named[0], eos_token=named[1])


def llama2() -> tuple[tokenizers.Tokenizer, dict]:
    rust = sentencepiece(
        ["<unk>", "<s>", "</s>"],
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
    return rust, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def phi3() -> tuple[tokenizers.Tokenizer, dict]:
    rust, settings = llama2()
    turns = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    rust.add_special_tokens([tokenizers.AddedToken(t, rstrip=True, normalized=False) for t in turns])
    return rust, settings


def mistral() -> tuple[tokenizers.Tokenizer, dict]:
    rust = sentencepiece(
        ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        decoder=decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )
    return rust, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def gemma() -> tuple[tokenizers.Tokenizer, dict]:
    rust = sentencepiece(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
        normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )
    rust.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in ("\n\n", "\n\n\n", "<table>")])
    return rust, dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def bert() -> tuple[tokenizers.Tokenizer, dict]:
    rust = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece(cleanup=False)
    named = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rust.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=700, special_tokens=named, show_progress=False)
    )
    rust.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return rust, dict(zip(roles, named, strict=True))


def t5() -> tuple[tokenizers.Tokenizer, dict]:
    rust = tokenizers.Tokenizer(models.Unigram())
    rust.normalizer = normalizers.NFKC()
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    rust.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    rust.train_from_iterator(CORPUS, trainer)
    rust.add_special_tokens(["<extra_id_1>", "<extra_id_0>"])
    rust.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    return rust, dict(eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


KINDS = dict(
    smollm=smollm, qwen=qwen, llama3=llama3, llama2=llama2, phi3=phi3, mistral=mistral, gemma=gemma, bert=bert, t5=t5
)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> dict[str, Path]:
    """A folder for each kind."""
    folders = {}
    for name, make in KINDS.items():
        rust, settings = make()
        folder = folders[name] = tmp_path_factory.mktemp(name)
        rust.save(str(folder / "tokenizer.json"))
        named = dict(tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=False) | settings
        (folder / "tokenizer_config.json").write_text(json.dumps(named))
        (folder / "special_tokens_map.json").write_text(json.dumps(settings))
    return folders


@pytest.fixture(scope="module")
def made(published, tmp_path_factory):
    """By the template's source: our tokenizer, our template, and the tokenizer of `transformers`."""
    import transformers  # not every test here needs it

    kept: dict[str, Any] = {}

    def make(source: str) -> Any:
        if source not in kept:
            folder = tmp_path_factory.mktemp("rewriting") / "qwen"
            shutil.copytree(published["qwen"], folder)
            (folder / "chat_template.jinja").write_text(source)
            theirs = transformers.AutoTokenizer.from_pretrained(folder)
            theirs.add_tokens(SPECIAL, special_tokens=True)
            theirs.add_tokens([transformers.AddedToken(name, special=False, normalized=False) for name in ADDED])
            theirs.save_pretrained(folder)
            (folder / "chat_template.jinja").write_text(source)
            kept[source] = (*import_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder))
        return kept[source]

    return make
