"""Trees of parts: types, overrides by path, what a user types, and manifests that may come from a stranger."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any, Literal

import flax.linen as nn
import hypothesis.strategies as st
import pytest
from hypothesis import given

from llm_jax.core import parts, serialization
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part, Positive, Range, Rate, Size
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import GEGLU, FeedForward, SwiGLU
from llm_jax.layers.masks import Both, Causal, Mask, SlidingWindow
from llm_jax.layers.norms import LayerNorm, Norm, RMSNorm
from llm_jax.layers.positions import Alibi, LinearScaling, Positions, Rope, RopeScaling
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model
from llm_jax.models.stack import Stack


class Fruit(Part):
    """A family of these tests: no dataclass, so not a part itself."""


@dataclasses.dataclass(frozen=True)
class Apple(Fruit):
    weight: float = 1.0
    count: int = 1
    ripe: bool = True
    colour: Literal["red", "green"] = "red"
    name: str = "apple"
    sizes: tuple[int, ...] = ()
    pair: tuple[float, str] = (1.0, "a")
    inside: Part | None = None


@dataclasses.dataclass(frozen=True)
class Basket(Part):
    first: Fruit
    more: tuple[Fruit, ...] = ()
    anything: Part = Apple()


HERE = (__name__,)


def model() -> Decoder:
    block = Block(Attention(key_heads=2, head=8), SwiGLU(hidden=16))
    return Decoder(Embed(width=16, vocabulary=32), Stack((block, block), repeats=2), Rope())


# -------------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("value", "declared", "wanted"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (-0.5, float, -0.5),
        ("a", str, "a"),
        (False, bool, False),
        (None, int | None, None),
        (2, float | None, 2.0),
        ([1, 2], tuple[int, ...], (1, 2)),
        ((), tuple[int, ...], ()),
        ([1, "a"], tuple[float, str], (1.0, "a")),
        ([1, "a"], tuple, (1, "a")),
        ("red", Literal["red", "green"], "red"),
        (Apple(), Fruit, Apple()),
        (object, Any, object),
        (((1, 2), (3, 4)), tuple[tuple[int, int], ...], ((1, 2), (3, 4))),
    ],
)
def test_conform_accepts(value, declared, wanted):
    found = parts.conform(value, declared, "here")
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    ("value", "declared", "words"),
    [
        (True, int, "a whole number"),
        (1, bool, "True or False"),
        (1.0, int, "a whole number"),
        (True, float, "a number"),
        (10**400, float, "a number"),
        (float("nan"), float, "a finite number"),
        (float("-inf"), float, "a finite number"),
        (0, Size, "a whole number at least 1"),
        (1.0, Rate, "a number at least 0 and below 1"),
        (0, Positive, "a number above 0"),
        ((), Annotated[tuple[int, ...], Range(1)], "a tuple of a whole number with length at least 1"),
        (-1, Size | None, "a whole number at least 1 or None"),
        (Positions(), Positions, "Alibi"),
        (Norm(), nn.Module, "Norm"),
        (Mask(), Mask, "Causal"),
        (3, str, "text"),
        ("3", int, "a whole number"),
        (None, int, "a whole number"),
        ("x", int | None, "a whole number or None"),
        (0, None, "None"),
        ((1, "a"), tuple[int, ...], "a whole number"),
        ("ab", tuple[str, ...], "a tuple of text"),
        ((1.0,), tuple[float, str], "a tuple"),
        (1, tuple, "tuple"),
        ("gren", Literal["red", "green"], "did you mean 'green'?"),
        (1, Literal[True], "one of True"),
        (Alibi(), Fruit, "a Fruit"),
        (Fruit, Fruit, "a Fruit"),
        (3, Positions, "Alibi"),
        (Basket(Apple()), RopeScaling, "YarnScaling"),
    ],
)
def test_conform_refuses_in_one_line(value, declared, words):
    with pytest.raises(InputError) as refusal:
        parts.conform(value, declared, "here")
    assert words in str(refusal.value) and str(refusal.value).startswith("here") and "\n" not in str(refusal.value)


def test_check_finds_what_a_constructor_let_through():
    assert parts.check(Apple(weight=2)).weight == 2.0  # pyright: ignore
    with pytest.raises(InputError, match=r"more\.1\.count must be a whole number, not 'two'"):
        parts.check(Basket(Apple(), (Apple(), Apple(count="two"))))  # pyright: ignore
    broken = model().clone(norm=Rope())
    with pytest.raises(InputError, match="norm must be a Norm"):
        parts.check(broken)
    assert parts.check(model()) == model()


# ---------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("stack.repeats", 4, lambda m: m.stack.repeats),
        ("stack.pattern.1.attention.dropout", 0.5, lambda m: m.stack.pattern[1].attention.dropout),
        ("stack.pattern.0.ffn", GEGLU(hidden=8), lambda m: m.stack.pattern[0].ffn),
        ("stack.pattern.1", Block(Attention(1), FeedForward(4)), lambda m: m.stack.pattern[1]),
        ("positions", Alibi(), lambda m: m.positions),
        ("positions.scaling", LinearScaling(2.0), lambda m: m.positions.scaling),
        ("positions.theta", 500_000, lambda m: m.positions.theta),
        ("stack.run", "scan", lambda m: m.stack.run),
    ],
)
def test_override_changes_one_thing(path, value, read):
    before = model()
    after = parts.override(before, path, value)
    assert read(after) == value and read(before) != value and before == model()
    assert parts.override(after, path, read(before)) == before


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("stack.repeat", 4, "did you mean 'repeats'?"),
        ("stak", 4, "did you mean 'stack'?"),
        ("stack.pattern.2.norm", RMSNorm(), "0 to 1"),
        ("stack.pattern.-1.norm", RMSNorm(), "0 to 1"),
        ("stack.pattern.x", RMSNorm(), "0 to 1"),
        ("stack.pattern.\u00b2", RMSNorm(), "0 to 1"),
        ("stack.pattern.0", RMSNorm(), "must be a Block"),
        ("stack.repeats.more", 4, "which has no 'more' inside"),
        ("stack.repeats", "4", "stack.repeats must be a whole number, not '4'"),
        ("stack.run", "scam", "did you mean 'scan'?"),
        ("positions", RMSNorm(), "must be a Positions"),
        ("positions", "Alibi", "must be a Positions"),
        ("", 1, "no setting ''"),
        ("stack..repeats", 1, "no setting 'stack.'"),
        ("parent", None, "no setting 'parent'"),
        ("name", "x", "no setting 'name'"),
    ],
)
def test_override_refuses_in_one_line(path, value, words):
    with pytest.raises(InputError) as refusal:
        parts.override(model(), path, value)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_override_keeps_the_type_of_a_tuple():
    assert parts.override(Apple(sizes=(1, 2)), "sizes.1", 5).sizes == (1, 5)
    with pytest.raises(InputError, match=r"sizes\.1 must be a whole number, not 'five'"):
        parts.override(Apple(sizes=(1, 2)), "sizes.1", "five")
    with pytest.raises(InputError, match="which has none"):
        parts.override(Apple(), "sizes.0", 5)


def test_override_keeps_the_family_where_any_part_may_stand():
    with pytest.raises(InputError, match="anything must be a Fruit"):
        parts.override(Basket(Apple()), "anything", Causal())
    assert parts.override(Basket(Apple()), "anything", Apple(2.0)).anything == Apple(2.0)


def test_a_family_is_the_last_base_that_is_ours():
    assert parts.family(SwiGLU) is FeedForward and parts.family(Rope) is Positions and parts.family(Apple) is Fruit
    assert parts.family(Decoder) is Model and "parent" not in parts.settings(Decoder)


# --------------------------------------------------------------------------------------------------- what a user types


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-3", -3),
        ("-2.5e-3", -2.5e-3),
        ("1_000", 1000),
        ("True", True),
        ("None", None),
        ("'a b'", "a b"),
        ("gpt2", "gpt2"),
        ("(1, 2)", (1, 2)),
        ("[1, -2]", (1, -2)),
        ("()", ()),
        (" 7 ", 7),
        ("Alibi()", Alibi()),
        ("Rope(theta=5e5)", Rope(theta=5e5)),
        ("Rope(5)", Rope(5.0)),
        ("Rope(scaling=LinearScaling(factor=2))", Rope(scaling=LinearScaling(2.0))),
        ("Both((Causal(), SlidingWindow(size=4)))", Both((Causal(), SlidingWindow(4)))),
        (
            "Block(Attention(2, head=4, norm=RMSNorm()), GEGLU(8), LayerNorm(bias=False))",
            Block(Attention(2, head=4, norm=RMSNorm()), GEGLU(8), LayerNorm(bias=False)),
        ),
        ("two words", "two words"),
        ("", ""),
    ],
)
def test_parse(text, value):
    found = serialization.parse(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "__import__('os').system('true')",
        "os.system('true')",
        "open('/etc/passwd')",
        "eval('1')",
        "exec('1')",
        "(lambda: 1)()",
        "lambda: 1",
        "[x for x in (1,)]",
        "1 + 1",
        "2 ** 9",
        "not True",
        "~1",
        "{'a': 1}",
        "{1}",
        "f'{1}'",
        "Rope.__init__",
        "Rope().theta",
        "().__class__",
        "Rope(*(1,))",
        "Rope(theta=open('x'))",
        "1 if True else 2",
        "a[0]",
        "a.b",
        "a == b",
        "--1",
        "-Rope()",
        "(x := 1)",
        "await_()",
        "print()",
        "Part()",
        "Module()",
        "Init()",
        "Mask()",
        "Kernel()",
        "digest('a')",
        "Fruit()",
        "Dense(3)",
    ],
)
def test_parse_evaluates_nothing_else(text):
    with pytest.raises(InputError) as refusal:
        serialization.parse(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Ropee()", "did you mean 'Rope'?"),
        ("Rope", "write Rope(...)"),
        ("Rope(theat=1)", "did you mean 'theta'?"),
        ("Rope(theta='x')", "Rope.theta must be a number"),
        ("Rope(1.0, None, 1.0, 2)", "at most 3 settings"),
        ("Rope(1.0, theta=2.0)", "is given theta twice"),
        ("Rope(theta=1.0, theta=2.0)", "given twice"),
        ("Rope(**{})", "cannot read"),
        ("Attention()", "Attention needs key_heads"),
        ("Rope(scaling=Alibi())", "a RopeScaling"),
        ("Rope(name='x')", "no setting 'name'"),
    ],
)
def test_parse_says_what_is_wrong(text, words):
    with pytest.raises(InputError) as refusal:
        serialization.parse(text)
    assert words in str(refusal.value)


def test_parse_takes_no_longer_for_many_signs():
    with pytest.raises(InputError):
        serialization.parse("-" * 60 + "1")


def test_parse_knows_a_users_parts_only_when_told():
    with pytest.raises(InputError, match="no part named 'Apple'"):
        serialization.parse("Apple()")
    assert serialization.parse("Apple(sizes=(3,))", HERE) == Apple(sizes=(3,))


LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)


@given(LITERALS)
def test_parse_reads_back_every_literal(value):
    assert serialization.parse(repr(value)) == value


@given(st.text())
def test_parse_of_any_text_is_a_value_or_one_line(text):
    try:
        serialization.parse(text)
    except InputError as refusal:
        assert "\n" not in str(refusal).replace(repr(text), "")


# ----------------------------------------------------------------------------------------------------------- manifests


def test_a_manifest_survives_json():
    tree = model().clone(positions=Rope(scaling=LinearScaling(2.0)))
    assert serialization.from_json(json.loads(json.dumps(serialization.to_json(tree)))) == tree
    basket = Basket(Apple(sizes=(1, 2), pair=(2.0, "b"), inside=Causal()), (Apple(), Apple(0.5)))
    assert serialization.from_json(json.loads(json.dumps(serialization.to_json(basket))), HERE) == basket


@given(
    st.builds(
        Apple,
        weight=st.floats(allow_nan=False, allow_infinity=False),
        count=st.integers(),
        ripe=st.booleans(),
        colour=st.sampled_from(["red", "green"]),
        name=st.text(),
        sizes=st.lists(st.integers()).map(tuple),
    )
)
def test_every_setting_survives_json(apple):
    assert serialization.from_json(json.loads(json.dumps(serialization.to_json(apple))), HERE) == apple


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "subprocess:Popen",
        "llm_jax.core.files:digest",
        "llm_jax.core.files:Path",
        "llm_jax.core.parts:Part",
        "llm_jax.core.parts:nn",
        "llm_jax.core.dims:Init",
        "llm_jax.layers.tokens:Tokens",
        "llm_jax.layers.cache:Cache",
        "llm_jax.nowhere:Rope",
        "llm_jax.layers.positions:Nothing",
        "llm_jax.layers.attention:RMSNorm",
        "llm_jax.layers.positions:",
        "llm_jax.layers.positions",
        ":Rope",
        "",
        "llm_jax.x\0y:Rope",
        "llm_jax..core:Rope",
        "llm_jaxed:Rope",
        "flax.linen:Dense",
        "llm_jax.layers.positions:Rope.__init__",
        f"{__name__}:Apple",
        None,
        3,
        ["llm_jax.layers.positions:Rope"],
    ],
)
def test_a_manifest_may_name_only_parts(name):
    with pytest.raises(InputError) as refusal:
        serialization.from_json({"part": name})
    assert "\n" not in str(refusal.value)


def test_a_manifest_of_an_older_version_says_where_a_part_is_now():
    with pytest.raises(
        InputError, match=r"which is llm_jax\.optim\.optimizers:AdamW now: a run of an older version"
    ) as no:
        serialization.from_json({"part": "llm_jax.training.optimizers:AdamW"})
    assert "\n" not in str(no.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta": "big"}, "manifest.theta must be a number"),
        ({"theat": 1.0}, "did you mean 'theta'?"),
        ({"scaling": {"no": 1}}, "scaling"),
        ({"scaling": {"part": "llm_jax.layers.masks:Causal"}}, "manifest.scaling"),
        ({"parent": None}, "no setting 'parent'"),
    ],
)
def test_a_manifest_must_fit(change, words):
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        serialization.from_json({"part": "llm_jax.layers.positions:Rope"} | change)


def test_a_manifest_keeps_parts_and_literals_only():
    with pytest.raises(InputError, match="cannot be kept in a manifest"):
        serialization.to_json(Apple(name=object()))  # pyright: ignore
    with pytest.raises(InputError, match="needs first"):
        serialization.from_json({"part": f"{__name__}:Basket"}, HERE)


# ------------------------------------------------------------------------------------------------------------ the tree


def test_walk_gives_paths_that_override_takes():
    tree = model()
    found = dict(parts.walk(tree))
    assert found[""] is tree and isinstance(found["stack.pattern.1.attention.mask"], Causal)
    assert next(iter(found)) == ""
    for path, part in found.items():
        if path:
            assert parts.override(tree, path, part) == tree


def test_transform_reaches_every_part_children_first():
    seen = []

    def wider(part):
        seen.append(type(part))
        return part.clone(hidden=99) if isinstance(part, FeedForward) else part

    after = parts.transform(model(), wider)
    assert [b.ffn.hidden for b in after.stack.pattern] == [99, 99] and seen[-1] is Decoder
    assert isinstance(after, nn.Module) and seen.count(Block) == 2
