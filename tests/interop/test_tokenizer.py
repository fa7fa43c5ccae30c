"""Published tokenizers: the same ids as `transformers` gives, and no special token from any text."""

import json
import shutil

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.core.errors import InputError
from llm_jax.interop.tokenizers.export import export_tokenizer
from llm_jax.interop.tokenizers.import_ import assemble, import_tokenizer
from llm_jax.text import Bpe, Bytes, Characters, ChatTemplate, Message, Unigram, WordPiece, load_tokenizer
from llm_jax.text.chat import Jinja

KINDS = ("smollm", "qwen", "llama3", "llama2", "phi3", "mistral", "gemma", "bert", "t5")
SPOKEN = "The values of the attributes, e.g. def f(x):\n\n    return x  +  12345 \n\n\n café 🙂 日本"
text = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["the ", " statement", "\n", "\n\n\n", "  ", "é", "▁", "12", "<0x41>", "def"])).map(
        "".join
    ),
)
every = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def both(published):
    """Ours and that of `transformers`, by kind."""
    return {
        kind: (import_tokenizer(folder)[0], transformers.AutoTokenizer.from_pretrained(folder))
        for kind, folder in published.items()
    }


@every
@given(text=text)
def test_text_has_the_ids_of_transformers_and_is_read_back_alike(both, kind, text):
    ours, theirs = both[kind]
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    if ours.special.get("unk") not in ids:
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    counts = ours.count_bytes(text)
    assert min(counts, default=0) >= 0 and sum(counts) == (len(text.encode()) if ids else 0)
    stream = ours.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == ours.decode(ids)


@every
def test_ids_are_unchanged_and_roles_are_known(both, kind):
    ours, theirs = both[kind]
    assert ours.vocabulary == len(theirs)
    names = ours.special | ours.marks
    for i, token in theirs.added_tokens_decoder.items():
        text = token.content.isspace() or token.content == "<table>"
        assert ours.encode(token.content) == [i] if text else names[token.content] == i
        assert text or (token.content in ours.special) == token.special
    bos = theirs.cls_token_id if kind == "bert" else theirs.bos_token_id
    eos = theirs.sep_token_id if kind == "bert" else theirs.eos_token_id
    assert ours.special.get("bos") == bos and ours.special["eos"] == eos
    assert ours.special.get("pad") == theirs.pad_token_id and ours.ends == {eos}
    assert ours.special.get("mask") == theirs.mask_token_id
    assert ("unk" in ours.special) == (kind in ("bert", "t5"))


@every
def test_no_text_forges_a_special_token(both, kind):
    ours, theirs = both[kind]
    for name in theirs.get_added_vocab():
        for said in (name, f" {name} ", f"a{name}b", name * 2, name.strip("<>|[]")):
            assert not ours.beside & set(ours.encode(said))


ADDED = ["covid", "New York", "<e1>", "|||EMAIL|||", "WHO", "naïve", "#tag"]
words = st.lists(
    st.one_of(
        st.sampled_from(
            [*ADDED, "Covid", "covids", "new york", "<table>", "<h1>", "</h1>", " ", "  ", "\n", "the", "x"]
        ),
        st.text(max_size=4),
    )
).map("".join)


@pytest.fixture(scope="module")
def with_words(published, tmp_path_factory):
    """Tokenizers to which words were added, as `tokenizer.add_tokens` does, ours and theirs."""
    found = {}
    for kind, folder in published.items():
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        theirs.add_tokens([*ADDED, transformers.AddedToken("<h1>", normalized=False, rstrip=True)])
        theirs.add_tokens([transformers.AddedToken("</h1>", lstrip=True, normalized=False)])
        theirs.save_pretrained(kept := tmp_path_factory.mktemp(kind))
        found[kind] = import_tokenizer(kept)[0], transformers.AutoTokenizer.from_pretrained(kept)
    return found


@every
@given(text=words)
def test_added_words_are_text_as_in_transformers(with_words, kind, text):
    ours, theirs = with_words[kind]
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False) and not ours.beside & set(ids)
    counts = ours.count_bytes(text)
    assert min(counts, default=0) >= 0 and sum(counts) == (len(text.encode()) if ids else 0)
    if ours.lossless:
        assert ours.decode(ids) == text


@every
def test_added_words_are_saved_and_exported(with_words, kind, tmp_path):
    ours, theirs = with_words[kind]
    said = "the covid New York<e1>a|||EMAIL|||<h1>  x  </h1>WHO #tag"
    assert len({*theirs.convert_tokens_to_ids(ADDED)} & {*ours.encode(said)}) >= 4
    assert ours.encode(said) == theirs.encode(said, add_special_tokens=False)
    ours.save(tmp_path / "saved")
    export_tokenizer(ours, ChatTemplate(), tmp_path / "out")
    for again in (load_tokenizer(tmp_path / "saved"), import_tokenizer(tmp_path / "out")[0]):
        assert again.encode(said) == ours.encode(said) and again.vocabulary == ours.vocabulary
        assert again.lossless == ours.lossless and np.array_equal(again.bytes_V, ours.bytes_V)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.encode(said, add_special_tokens=False) == ours.encode(said)


def test_what_conversations_are_built_of_is_no_text(published):
    """By its name, or since the chat template writes it; a word that the template's program has too stays one."""
    folder = published["qwen"]
    rust = json.loads((folder / "tokenizer.json").read_text())
    size = 1 + max(t["id"] for t in rust["added_tokens"])
    flags = dict(special=False, single_word=False, lstrip=False, rstrip=False, normalized=False)
    for name in ("<|fim_prefix|>", "<\uff5cUser\uff5c>", "<start_of_turn>", "[USER]", "message"):
        rust["added_tokens"].append(dict(flags, id=size, content=name))
        size += 1
    bare, _ = assemble(rust, {}, None)
    assert bare.marks.keys() >= {
        "<think>",
        "</think>",
        "<tool_call>",
        "<|fim_prefix|>",
        "<\uff5cUser\uff5c>",
        "<start_of_turn>",
    }
    assert not {"[USER]", "message"} & bare.marks.keys()
    source = "{% for message in messages %}{{ '[USER]' + message['content'] }}{% endfor %}"
    told, template = assemble(rust, dict(chat_template=source), None)
    assert template == Jinja(source, ("[USER]",)) and "[USER]" in told.marks and "message" not in told.marks
    ids, _ = template.render(told, [Message("user", "a message [USER]")])
    assert ids[0] == told.marks["[USER]"] == size - 2 and ids.count(size - 2) == 1 and size - 1 in ids


@pytest.mark.parametrize("flags", [dict(single_word=True), dict(normalized=False)])
def test_a_word_that_is_recognised_in_part_is_refused_where_that_cannot_be_kept(published, tmp_path, flags):
    """To number it, WordPiece must have it in its vocabulary, and would find it in other places too."""
    theirs = transformers.AutoTokenizer.from_pretrained(published["bert"])
    theirs.add_tokens([transformers.AddedToken("covid", **flags), transformers.AddedToken("<e1>", **flags)])
    theirs.save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"the added token 'covid' has single_word=.*: add it with single_word=False and"
    ):
        import_tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(published["bert"])
    theirs.add_tokens([transformers.AddedToken("<e1>", **flags)])
    theirs.save_pretrained(tmp_path)
    for text in ("a <e1> b", "<E1>", "x<e1>y"):
        assert import_tokenizer(tmp_path)[0].encode(text) == theirs.encode(text, add_special_tokens=False)


def test_what_a_model_may_write_is_shown_and_other_special_tokens_are_not(both):
    ours, theirs = both["qwen"]
    ids = [ours.special["<|im_start|>"], ours.marks["<think>"], *ours.encode("so"), ours.special["<|im_end|>"]]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "<think>so"


@every
def test_saved_and_loaded_is_the_same(both, kind, tmp_path):
    ours, _ = both[kind]
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.identity == ours.identity and again.ends == ours.ends and again.beside == ours.beside
    assert again.encode(SPOKEN) == ours.encode(SPOKEN) and np.array_equal(again.bytes_V, ours.bytes_V)


OWN = [SPOKEN, "ab cd\nabc d " * 20]
RECIPES = dict(
    bpe=Bpe(300), words=WordPiece(120), unigram=Unigram(340), characters=Characters(), bytes=Bytes()
)  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, *RECIPES, "gpt2"])
def test_exported_is_what_transformers_reads(both, published, kind, tmp_path):
    template = ChatTemplate()
    if kind in KINDS:
        ours = both[kind][0]
    else:
        ours = load_tokenizer("gpt2") if kind == "gpt2" else RECIPES[kind].train(OWN)
    export_tokenizer(ours, template, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for said in (SPOKEN, "ab cd", "  x\ty\r\n", "", "naïve ▁ ½", "<0x41>"):
        ids = ours.encode(said)
        assert theirs.encode(said) == ids
        if ours.special.get("unk") not in ids:
            assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids)
    for role in ("bos", "eos", "pad"):
        assert getattr(theirs, f"{role}_token_id") == ours.special.get(role)
    known = {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert len(theirs) == ours.vocabulary and known >= ours.beside - set(ours.marks.values())
    again, _ = import_tokenizer(tmp_path)
    assert again.vocabulary == ours.vocabulary and again.beside == ours.beside and again.ends == ours.ends
    assert again.encode(SPOKEN) == ours.encode(SPOKEN)


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (True, True), (False, True)])
def test_an_exported_tokenizer_frames_texts_as_told(both, tmp_path, bos, eos):
    ours, _ = both["llama2"]
    export_tokenizer(ours, ChatTemplate(), tmp_path, bos=bos, eos=eos)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("the") == [1] * bos + ours.encode("the") + [2] * eos


def damaged(published, tmp_path, change) -> None:
    rust = json.loads((published["llama2"] / "tokenizer.json").read_text())
    change(rust)
    (tmp_path / "tokenizer.json").write_text(json.dumps(rust))
    import_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rust: rust["model"].update(type="WordLevel"), "is a WordLevel, which is not covered: choose from BPE"),
        (lambda rust: rust["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix='</w>', which is not"),
        (lambda rust: rust.pop("model"), "is damaged: KeyError 'model'"),
        (lambda rust: rust.update(normalizer={"type": "Nonsense"}), "tokenizer.json is damaged"),
        (
            lambda rust: rust.update(pre_tokenizer=dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True)),
            "ByteLevel with add_prefix_space=true",
        ),
        (lambda rust: rust["added_tokens"][1].update(content="user"), "special token 'user', which is a name of ours"),
    ],
)
def test_what_is_not_covered_is_refused(published, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as refusal:
        damaged(published, tmp_path, change)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no tokenizer.json in"):
        import_tokenizer(tmp_path)
    (tmp_path / "source.spm").touch()
    with pytest.raises(InputError, match=r"Marian's source\.spm and target\.spm are not covered: in Python, "):
        import_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[")
    with pytest.raises(InputError, match=r"tokenizer.json is damaged"):
        import_tokenizer(tmp_path)


@pytest.mark.parametrize("ends", ["2", [2, "3"], 2.0, True, -1, 10**9, {"id": 2}, [[2]]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_end_tokens_that_are_no_ids_are_refused(published, tmp_path, file, ends):
    shutil.copytree(published["llama2"], tmp_path / "a")
    (tmp_path / "a" / file).write_text(json.dumps(dict(eos_token_id=ends)))
    with pytest.raises(InputError, match=r"eos_token_id=.* has .*: it must be one id from 0 to \d+, or a list") as said:
        import_tokenizer(tmp_path / "a")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("ends", [5, [2, 5], [], None])
def test_end_tokens_are_one_or_several(published, tmp_path, ends):
    shutil.copytree(published["llama2"], tmp_path / "a")
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps(dict(eos_token_id=ends)))
    assert import_tokenizer(tmp_path / "a")[0].ends == {2, *(ends if isinstance(ends, list) else [ends or 2])}
