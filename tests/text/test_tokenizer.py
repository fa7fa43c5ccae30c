"""Errors at the edges of `Tokenizer`, and what streaming does with bytes that are no UTF-8."""

import pickle

import pytest
import tokenizers
from tokenizers import models

from llm_jax.core.errors import InputError
from llm_jax.text import Bpe, Bytes, Tokenizer, load_tokenizer

BYTES = Bytes().train([])


def test_a_character_is_held_back_until_it_is_whole():
    stream = BYTES.stream()
    assert [stream.push(i) for i in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert stream.flush() == ""


def test_bytes_that_are_no_utf8_become_replacement_characters():
    stream = BYTES.stream()
    assert [stream.push(i) for i in b"a\xffb\xf0\x9f"] == ["a", "\ufffd", "b", "", ""]
    assert stream.flush() == "\ufffd"
    assert BYTES.decode(b"a\xffb\xf0\x9f") == "a\ufffdb\ufffd"


def test_a_special_token_within_a_character_is_left_out():
    smile = [*"🙂".encode()]
    assert BYTES.decode([*smile[:2], BYTES.special["pad"], *smile[2:]]) == "🙂"


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer in '.*absent' .*'gpt2'"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize("file", ["special.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_file_is_named(tmp_path, file, content):
    BYTES.save(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=f"{file} is damaged"):
        load_tokenizer(tmp_path)


def test_an_unknown_spelling_is_refused():
    with pytest.raises(InputError, match="no spelling of tokens named 'letter': did you mean 'letters'"):
        Tokenizer(tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[])), {"bos": 1}, "letter")


def test_added_tokens_are_refused_since_text_could_forge_them():
    rust = tokenizers.Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    rust.add_special_tokens(["<s>"])
    with pytest.raises(InputError, match="'<s>' in a text would be read as that token"):
        Tokenizer(rust, {"bos": 1}, "pieces")


def test_a_tokenizer_travels_to_worker_processes():
    tokenizer = Bpe(300).train(["hello hello"])
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.identity == tokenizer.identity and again.encode("hello") == tokenizer.encode("hello")
