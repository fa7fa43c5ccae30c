"""Published tokenizers: the same ids as `transformers` gives, and no special token from any text."""

import json

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.core.tables import InputError
from llm_jax.interop.export_tokenizer import export_tokenizer
from llm_jax.interop.tokenizer import import_tokenizer
from llm_jax.text import Bpe, Bytes, Characters, ChatTemplate, Unigram, WordPiece, load_tokenizer

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
        assert token.content.isspace() or names[token.content] == i
        assert token.content.isspace() or (token.content in ours.special) == token.special
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
            assert name.isspace() or not ours.beside & set(ours.encode(said))


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
