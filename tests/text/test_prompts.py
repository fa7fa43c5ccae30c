"""Prompts that spell special tokens: what is told of them, what is read if they are trusted, and token ids."""

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.text import Bytes, ChatTemplate, Jinja
from llm_jax.text.prompts import check_special_tokens, notice, parse, token_ids

PLAIN = Bytes().train([])
OURS = PLAIN.having({"<|a|>": 300, "<|ab|>": 301, "<|x": 302})
LONELY = Jinja("", lstrip=("<|a|>",), rstrip=("<|ab|>",))


def test_special_tokens_that_a_text_spells_are_counted_and_named():
    assert notice(OURS, ["hello", "<|b|>", "", "<|a", "bos eos user"]) is None
    one, several = notice(OURS, ["x<|a|>y"]), notice(OURS, ["<|a|><|a|>", "<|ab|> <|x|>"])
    assert one and one.startswith("1 special token spelt in text (<|a|>) is read as ordinary text")
    assert several and several.startswith(
        "4 special tokens spelt in text (<|a|>, <|ab|>, <|x) are read as ordinary text"
    )
    assert "special_tokens='parse'" in several and "--special_tokens=parse" in several and "token ids" in several
    many = PLAIN.having({f"<|{name}|>": 300 + i for i, name in enumerate("abcdef")})
    assert "(<|a|>, <|b|>, <|c|>, <|d|> and 2 more)" in (notice(many, ["<|a|><|b|><|c|><|d|><|e|><|f|>"]) or "")


def test_a_trusted_text_has_the_tokens_that_it_spells():
    text = "a <|ab|> b<|a|>\n<|x|>"
    assert parse(OURS, text, ChatTemplate()) == [*b"a ", 301, *b" b", 300, *b"\n", 302, *b"|>"]
    assert parse(OURS, "a  <|ab|> b \n<|a|> c", LONELY) == [*b"a  ", 301, *b"b", 300, *b" c"]
    assert parse(OURS, "bos \ue000bos\ue001", ChatTemplate()) == OURS.encode("bos \ue000bos\ue001")
    assert parse(OURS, "", ChatTemplate()) == []
    with pytest.raises(InputError, match="the prompt is not valid Unicode"):
        parse(OURS, "<|a|>\ud800", ChatTemplate())


def test_masks_and_sentinels_can_be_written_in_a_trusted_text():
    ours = Bytes(sentinels=2).train([])
    mask, first, second = (ours.special[name] for name in ("mask", "<extra_id_0>", "<extra_id_1>"))
    text = "a[MASK]b<extra_id_1><extra_id_0>"
    assert parse(ours, text, ChatTemplate()) == [97, mask, 98, second, first]
    assert ours.encode(text) == [*text.encode()] and "[MASK]" in (notice(ours, [text]) or "")
    published = PLAIN.having({"<mask>": PLAIN.special["mask"]})  # as it is published, and in no other way
    assert parse(published, "<mask>[MASK]", ChatTemplate()) == [PLAIN.special["mask"], *b"[MASK]"]


def test_token_ids_are_whole_numbers_of_the_vocabulary():
    for ids in ([1, 2, 3], (1, 2, 3), np.array([1, 2, 3], np.int16), range(1, 4)):
        assert token_ids(ids, 4) == [1, 2, 3] and all(type(i) is int for i in token_ids(ids, 4))
    assert token_ids([], 4) == []
    for wrong, why in (
        ([1, 4], "token id 4 is not in the vocabulary, which has ids 0 to 3"),
        ([-1], "token id -1 is not"),
        (3, r"not int of shape \[\]: of one prompt, write \[prompt\]"),
        ([[1], [2]], r"not list of shape \[2, 1\]"),
        ([[1], [2, 3]], "not list of shape"),
        ([0.5], r"not list of shape \[1\]"),
        (["a"], "not list of shape"),
        ([True], "not list of shape"),
        (None, "not NoneType"),
    ):
        with pytest.raises(InputError, match=why):
            token_ids(wrong, 4)
    with pytest.raises(InputError, match="special_tokens must be 'text' or 'parse': did you mean 'parse'"):
        check_special_tokens("prase")
