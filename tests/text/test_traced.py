"""Traced texts: every operation gives what it gives of plain ones, and each character keeps its origin."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.text.traced import OTHER, TEMPLATE, UNKNOWN, Traced, origins, to_json, trace

LETTERS = "abcdefgh \n\t,é½İ"  # each once in a text, so that a letter tells where it came from
texts = st.permutations(LETTERS).flatmap(
    lambda letters: st.integers(0, len(LETTERS)).map(lambda n: "".join(letters[:n]))
)
few = st.text(st.sampled_from("ab \n"), max_size=8)
SPACE = [None, " ", "ab", "a", "\n"]


def traced(text: str) -> Traced:
    """In which each letter's origin is its place in LETTERS."""
    return Traced(text, "".join(chr(LETTERS.index(letter) + 3) for letter in text))


def check(found, plain):
    """The same, with the right origins: of pieces, of each of them."""
    if isinstance(plain, str):
        assert isinstance(found, Traced) and found == plain
        assert [ord(origin) - 3 for origin in origins(found)] == [LETTERS.index(letter) for letter in plain]
    else:
        assert type(found) is type(plain) and len(found) == len(plain)
        for one, other in zip(found, plain, strict=True):
            check(one, other)


@given(text=texts, n=st.integers(-9, 9), m=st.integers(-9, 9), chars=st.sampled_from([None, "a", "ab \n", ""]))
def test_what_is_cut_is_what_is_cut_of_plain_text(text, n, m, chars):
    one = traced(text)
    check(one[n:m], text[n:m])
    check(one[::-1], text[::-1])
    check([*one], [*text])
    for name in ("strip", "lstrip", "rstrip"):
        check(getattr(one, name)(chars), getattr(text, name)(chars))
    for affix in (text[:3], text[-3:], "x", ""):
        check(one.removeprefix(affix), text.removeprefix(affix))
        check(one.removesuffix(affix), text.removesuffix(affix))
    for name in ("upper", "lower", "title", "capitalize"):
        found = getattr(one, name)()
        assert found == getattr(text, name)() and len(origins(found)) == len(found)
        same = len(found) == len(text)  # one letter in the list becomes two
        assert origins(found) == (origins(one) if same else chr(UNKNOWN) * len(found))
    assert one == text and text == one and one in {text} and f"{one}" == text and hash(one) == hash(text)
    with pytest.raises(IndexError):
        one[len(text)]


@given(text=few, sep=st.sampled_from(SPACE), most=st.integers(-1, 3), keep=st.booleans())
def test_what_is_split_is_split_as_plain_text(text, sep, most, keep):
    """Letters come more than once here: their origin is their place."""
    one = Traced(text, "".join(chr(at + 3) for at in range(len(text))))

    def places(pieces, plain):
        assert [str.__str__(piece) for piece in pieces] == [*plain]
        for piece in pieces:
            at = [ord(origin) - 3 for origin in origins(piece)]
            assert at == [*range(at[0], at[0] + len(at))] if at else not piece
            assert text[at[0] : at[-1] + 1] == piece if at else True
        ends = [ord(origins(piece)[0]) for piece in pieces if piece]
        assert ends == sorted(set(ends))

    places(one.split(sep, most), text.split(sep, most))
    places(one.rsplit(sep, most), text.rsplit(sep, most))
    places(one.splitlines(keep), text.splitlines(keep))
    if sep:
        places(one.partition(sep), text.partition(sep))
        places(one.rpartition(sep), text.rpartition(sep))
        new = Traced("-+", TEMPLATE)
        replaced = Traced.of(one.replace(sep, new, most))
        assert str.__str__(replaced) == text.replace(sep, "-+", most) and len(origins(replaced)) == len(replaced)
        assert all(
            (origin == chr(TEMPLATE)) == (letter in "-+")
            for letter, origin in zip(str.__str__(replaced), origins(replaced), strict=True)
        )


def test_what_is_joined_keeps_both_origins_and_what_is_not_followed_is_unknown():
    one, two = Traced("a", 4), Traced("b", TEMPLATE)
    assert [*map(ord, origins(one + two + "c" + "1"))] == [4, TEMPLATE, UNKNOWN, TEMPLATE]  # a number is the template's
    assert [*map(ord, origins(Traced.of("c" + one * 2 + 2 * one)))] == [UNKNOWN, 4, 4, 4, 4]
    assert [*map(ord, origins(two.join([one, "c", one])))] == [4, TEMPLATE, UNKNOWN, TEMPLATE, 4]
    for followed in (one.center(9), one.zfill(9), "%s" % one, one.expandtabs(), one.ljust(9), "{}".format(one) * 2):  # noqa: UP031, UP032
        assert {UNKNOWN, 4} >= {*map(ord, origins(Traced.of(followed)))}
    with pytest.raises(TypeError):
        _ = one + {}  # pyright: ignore[reportOperatorIssue]


def test_json_is_of_the_content_in_it():
    value = {"a": ["x", 1, None], "b": {"c": "y"}}
    assert to_json(trace(value, 5), None, None, False) == json.dumps(value)
    assert {*origins(to_json(trace(value, 5), 1, None, True))} == {chr(5)}
    assert {*origins(to_json([trace(value, 5), trace(value, 6)], None, None, False))} == {chr(OTHER)}
    assert {*origins(to_json([1, {Traced("k", TEMPLATE): 2}], None, None, False))} == {chr(TEMPLATE)}
    assert {*origins(to_json({"k": 2}, None, None, False))} == {chr(UNKNOWN)}
