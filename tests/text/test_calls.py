"""Calls of tools: written, read back, and refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_jax.core.errors import InputError
from llm_jax.text import Call, Message
from llm_jax.text.calls import read, write

said = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
texts = st.one_of(said, st.sampled_from(["<tool_call>", "</tool_call>", "\n", '"}\n</tool_call>\n<tool_call>']))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(texts, values, max_size=3).map(json.dumps)
calls = st.builds(Call, st.from_regex(r"[\w.:/-]{1,8}", fullmatch=True), arguments)
contents = st.lists(texts, max_size=3).map("".join).filter(lambda text: not read(text)[1])


@given(content=contents, made=st.lists(calls, max_size=3).map(tuple))
def test_what_is_written_is_read(content, made):
    message = Message("assistant", content, made)
    assert read(write(content, made)) == (content, made) and Message.reply(message.text()) == message


def test_they_are_written_as_hermes_does_and_read_however_the_json_is_spaced():
    call = Call("weather.now", '{"city":"Tromsø","days":2}')
    written = 'Wait.\n<tool_call>\n{"name": "weather.now", "arguments": {"city": "Tromsø", "days": 2}}\n</tool_call>'
    assert Message("assistant", "Wait.", (call,)).text() == written
    spaced = '<tool_call>{"arguments": { "city": "Troms\\u00f8", "days": 2 }, "name": "weather.now"}</tool_call> \n'
    assert read(spaced + spaced) == ("", (call, call))


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        '<tool_call>\n{"name": "f", "arguments": {}}',
        '<tool_call>\n{"name": "f"}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": 3}\n</tool_call>',
        '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
        '<tool_call>\n["f", {}]\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call> and more',
        '<tool_call>\n{"name": "f", "arguments": {"x": Infinity}}\n</tool_call>',
        f'<tool_call>\n{{"name": "f", "arguments": {"[" * 99999}}}\n</tool_call>',
    ],
)
def test_what_is_no_call_is_content(text):
    assert read(text) == (text, ())


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ('f"', "{}", "is no name of a tool: use letters"),
        ("", "{}", "is no name of a tool"),
        ("f", "{", "what f is called with is no JSON: Expecting property name"),
        ("f", "[1]", "what f is called with is not a JSON object but"),
        ("f", '{"x": NaN}', "what f is called with cannot be written as JSON"),
        ("f", '{"x": "\\ud800"}', "what f is called with is not valid Unicode: half a surrogate pair"),
    ],
)
def test_what_cannot_be_called_is_refused(name, given, message):
    with pytest.raises(InputError, match=message) as raised:
        Call(name, given)
    assert "\n" not in str(raised.value)


def test_only_the_assistant_calls():
    with pytest.raises(InputError, match="only the assistant calls tools, not the user"):
        Message("user", "", (Call("f"),))
