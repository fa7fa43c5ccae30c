"""Documents in JSON objects: what is read of each shape, and that nothing else is dropped without a word."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.denoising import Denoising
from llm_jax.data.documents import (
    Comparison,
    Conversation,
    Example,
    Labelled,
    MultiLabelled,
    Preference,
    Text,
    TextPair,
)
from llm_jax.data.files import ArrayRecord, JsonLines
from llm_jax.data.noising import Masked
from llm_jax.data.preferences import Pairs
from llm_jax.data.ratings import RatedReplies
from llm_jax.data.sources import PlainTexts
from llm_jax.objectives.word2vec import SkipGram
from llm_jax.text.calls import Call
from llm_jax.text.chat import Message

USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOOL = {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "r"}
asked, said = Message("user", "q"), Message("assistant", "a")
ALPACA = {"instruction": "i", "input": "x", "output": "o", "text": "Below is an instruction ... ### Response:\no"}


@pytest.fixture
def documents(tmp_path):
    """The documents of records in a file, by `JsonLines`."""
    path = tmp_path / "a.jsonl"

    def read(*records, **settings):
        path.write_text("\n".join(map(json.dumps, records)))
        return list(JsonLines(str(path), **settings).documents())

    return read


@pytest.mark.parametrize(
    ("record", "document"),
    [
        ({"text": "t", "url": "u", "label": 1}, Labelled("t", 1)),
        ({"text": "t", "labels": ["a", "b"]}, MultiLabelled("t", ("a", "b"))),
        ({"text": "t", "labels": []}, MultiLabelled("t", ())),
        ({"text": "t", "text_pair": "u", "label": "a"}, TextPair("t", "u", "a")),
        ({"messages": [USER, REPLY], "id": 3}, Conversation((asked, said))),
        ({"messages": [USER, REPLY], "system": "s"}, Conversation((Message("system", "s"), asked, said))),
        ({"prompt": "q", "system": "s"}, Conversation((Message("system", "s"), asked))),
        ({"prompt": "q", "tools": [{"name": "f"}]}, Conversation((asked,), ('{"name": "f"}',))),
        ({"messages": [USER], "answer": "4"}, Conversation((asked,), answer="4")),
        ({"messages": [USER, REPLY], "solution": "4"}, Conversation((asked, said), answer="4")),
        ({"prompt": [USER], "answer": "4"}, Conversation((asked,), answer="4")),
        ({"prompt": "q", "ground_truth": "4"}, Conversation((asked,), answer="4")),
        ({"prompt": "q", "completion": "a", "answer": "4"}, Conversation((asked, said), answer="4")),
        ({"prompt": "q", "answer": "a"}, Example("q", "a")),
        (ALPACA, Conversation((Message.asked("i", "x"), Message("assistant", "o")))),
        (
            {"instruction": "i", "output": "o", "system": "s", "answer": "4"},
            Conversation((Message("system", "s"), Message("user", "i"), Message("assistant", "o")), answer="4"),
        ),
        ({"text": "repeats", "messages": [USER, REPLY]}, Conversation((asked, said))),
        ({"text": "t", "messages": [], "prompt": "", "completion": ""}, Text("t")),
        ({"text": "a story", "prompt": "Write a story."}, Text("a story")),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"},
            Preference((Message("system", "s"), asked), "a", "b"),
        ),
        ({"chosen": [USER, REPLY], "rejected": [USER, REPLY | {"content": "b"}]}, Preference((asked,), "a", "b")),
    ],
)
def test_what_is_read_of_each_shape(documents, record, document):
    assert documents(record) == [document]
    assert documents(dict.fromkeys(("margin", "rating", "weight", "images", "tools", "text", "label")) | record) == [
        document
    ], "what is null is absent"


def test_what_says_nothing_is_not_refused(documents):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert documents(pair | {"tools": []}) == documents(pair)
    assert documents({"messages": [USER, REPLY | {"prefix": False}]}) == documents({"messages": [USER, REPLY]})


def test_a_field_that_is_named_is_read_whatever_stands_beside_it(documents):
    assert documents(ALPACA, field="output") == [Text("o")]


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_messages_have_reasoning_and_weights(documents, name):
    turns = [REPLY | {name: "because", "weight": 0}, REPLY | {"weight": 1.0}, REPLY | {name: "", "weight": None}]
    read = Message("assistant", "a", reasoning="because", weight=0)
    assert documents({"messages": [USER, *turns]}) == [Conversation((asked, read, said, said))]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [CALLS, TOOL, REPLY | {"reasoning": "r", "weight": 0}], "answer": "4"},
        {"prompt": "q", "completion": "a", "system": "s"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1.5},
        {"instruction": "i", "input": "x", "output": "o"},
        {"text": "t", "label": 0},
    ],
)
def test_null_and_absent_are_the_same_at_every_place(documents, record):
    """Tables that were written as JSON have every column in every record."""

    def variants(value: Any) -> Iterator[tuple[Any, Any]]:
        """The value with a null, and without what is null there."""
        if isinstance(value, list):
            for i, each in enumerate(value):
                yield from (
                    (value[:i] + [a] + value[i + 1 :], value[:i] + [b] + value[i + 1 :]) for a, b in variants(each)
                )
        if isinstance(value, dict):
            for name, each in value.items():
                rest = {other: v for other, v in value.items() if other != name}
                yield rest | {name: None}, rest
                yield from ((value | {name: a}, value | {name: b}) for a, b in variants(each))

    def outcome(given):
        try:
            return documents(given)
        except InputError as error:
            return str(error)

    for with_null, without in variants(record):
        assert outcome(with_null) == outcome(without)


def test_fields_that_nobody_reads_are_named_once_with_their_count(documents, tmp_path, caplog):
    records = [{"messages": [USER | {"name": "x"}, REPLY], "score": n, "title": "", "id": n} for n in range(3)]
    records[0]["messages"][1] = CALLS | {"tool_calls": [CALL | {"colour": 1}]}
    for _ in range(2):
        assert len(documents({"text": "t", "score": 9}, *records)) == 4
    found = [record.getMessage() for record in caplog.records]
    fields = "'colour' of calls (1 times), 'name' of messages (3 times), 'score' (1 times)"
    asked_for = "no text is made of; a reward reads those that it asks for by name: 'score' (3 times)"
    assert found == [
        f"{tmp_path / 'a.jsonl'} has fields that {what}" for what in (f"are not read: {fields}", asked_for)
    ]
    caplog.clear()
    documents(ALPACA, {"text": "t", "id": 3, "url": "u", "extra": None})
    assert not caplog.records
    documents({"text": "repeats", "messages": [USER, REPLY]})
    assert [r.getMessage().rpartition(": ")[2] for r in caplog.records] == ["'text' (1 times)"]


@pytest.mark.parametrize(
    "shape",
    [
        {"messages": [USER, REPLY]}, {"messages": [USER]}, {"prompt": "q"}, {"prompt": [USER]},
        {"prompt": "q", "answer": "a"}, {"prompt": "q", "completion": "a"}, {"instruction": "i", "output": "o"},
        {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "solution": "4"},
        {"prompt": [USER], "ground_truth": "4"},
    ],
    ids=lambda shape: "+".join(shape),
)  # fmt: skip
def test_other_fields_of_a_prompt_are_its_columns(documents, shape):
    """As they are: harmless ones, empty ones and the answer under its own name too. They are no part of the text."""
    others = {"nums": [3, [4.5]], "source": "s", "tests": {"in": "x"}, "hint": "", "level": None}
    (found,) = documents(shape | others)
    assert found == documents(shape)[0] and hash(found) == hash(documents(shape)[0])
    known = {name: value for name, value in shape.items() if name in ("answer", "solution", "ground_truth")}
    assert found.columns == {"nums": [3, [4.5]], "source": "s", "tests": {"in": "x"}, "hint": ""} | known


def test_numbers_beside_a_prompt_are_for_rewards(documents):
    """As of a game of numbers: no reply is a number. Where there is a reply, or a text, they are refused as ever."""
    (found,) = documents({"prompt": "use 3 and 4 to make 7", "target": 7, "nums": [3, 4]})
    assert found.columns == {"target": 7, "nums": [3, 4]} and found.answer is None
    for record in ({"prompt": "q", "target": "seven"}, {"prompt": "q", "completion": "a", "target": 7}):
        with pytest.raises(InputError, match="'target' would not be read: a reply to a prompt is its 'completion'"):
            documents(record)


def test_other_sources_name_them_too(tmp_path, caplog):
    from array_record.python.array_record_module import ArrayRecordWriter

    rated = tmp_path / "rated.jsonl"
    rated.write_text("\n".join(json.dumps(dict(prompt="q", completion=f"{n}", rating=n, votes=n)) for n in range(3)))
    RatedReplies(str(rated), 0.0).documents()
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    writer.write(b'{"text": "t", "votes": 3}')
    writer.close()
    assert list(ArrayRecord(str(tmp_path / "a.array_record")).documents()) == [Text("t")]
    assert [r.getMessage().rpartition("/")[2] for r in caplog.records] == [
        "rated.jsonl has fields that are not read: 'votes' (3 times)",
        "a.array_record has fields that are not read: 'votes' (1 times)",
    ]
    for field, advice in (("weight", "'weight', 0 or 1"), ("label", "RatedReplies reads ratings"), ("image", "text")):
        rated.write_text(json.dumps(dict(prompt="q", completion="a", rating=1) | {field: 2}))
        with pytest.raises(InputError, match=f"rated.jsonl:1: '{field}' would not be read: .*{advice}"):
            RatedReplies(str(rated)).documents()


WEIGHT, REASONED = "message 1: the weight of a message is 0 or 1, not ", "'{}' would not be read: .*'reasoning_content'"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": [USER, REPLY | {"weight": 0.5}]}, f"{WEIGHT}0.5"),
        ({"messages": [USER, REPLY | {"weight": -1}]}, f"{WEIGHT}-1"),
        ({"messages": [USER, REPLY | {"weight": True}]}, "'weight' must be a number, not 'True'"),
        ({"messages": [USER | {"weight": 1}, REPLY]}, "only what the assistant says has a weight, not .* user"),
        ({"messages": [USER, REPLY], "weight": 0.5}, "'weight' would not be read: a message of the assistant has"),
        ({"text": "t", "weight": 0}, "'weight' would not be read"),
        ({"messages": [USER, REPLY | {"train": False}]}, "'train' of messages would not be read: .* 'weight', 0 or 1"),
        ({"messages": [USER | {"thinking": "r"}, REPLY]}, "message 0: only the assistant reasons, not the user"),
        ({"messages": [USER, REPLY | {"thinking": "r", "reasoning": "s"}]}, "thinking and reasoning: leave one"),
        ({"prompt": "q", "completion": "a", "reasoning": "r"}, REASONED.format("reasoning")),
        ({"instruction": "i", "output": "o", "rationale": "r"}, REASONED.format("rationale")),
        ({"prompt": "q", "chosen": [REPLY | {"thinking": "r"}], "rejected": "b"}, "have no place for reasoning"),
        ({"prompt": "q", "chosen": [REPLY | {"weight": 0}], "rejected": "b"}, "cannot have the weight 0: leave"),
        ({"messages": [USER, REPLY], "images": ["a.png"]}, "'images' would not be read: text alone is read here"),
        ({"messages": [USER | {"images": [3]}, REPLY]}, "message 0: 'images' of messages would not be read"),
        ({"text": "t", "image": "a.png"}, "'image' would not be read"),
        ({"messages": [USER, REPLY], "functions": [{}]}, "'functions' would not be read: 'tools' stand beside"),
        ({"messages": [USER, REPLY | {"function_call": {"name": "f"}}]}, "'function_call' of messages would"),
        ({"messages": [CALLS | {"tool_calls": [{"name": "f", "parameters": {"a": 1}}]}]}, "'arguments' in a call"),
        ({"prompt": "q", "answer": "a", "tools": [{}]}, "'tools' would not be read"),
        ({"prompt": "q", "answer": "a", "system": "s"}, "'system' would not be read: write it as"),
        ({"messages": [{"role": "system", "content": "s"}, USER], "system": "s"}, "begin with the system: leave one"),
        ({"instruction": "i", "output": "o", "history": [["a", "b"]]}, "'history' would not be read"),
        ({"prompt": [USER], "input": "x"}, "'input' would not be read"),
        ({"messages": [USER], "response": "a"}, "a reply to a prompt is its 'completion'"),
        ({"messages": [USER, REPLY], "label": 1}, "'label' would not be read"),
        ({"messages": [USER], "answer": "4", "solution": "5"}, "has 'answer' and 'solution': leave one of them"),
        ({"messages": [USER], "answer": 4}, "the field 'answer' must be text, not '4'"),
        ({"messages": [CALLS, TOOL | {"name": "g"}]}, "message 1: it answers a call of 'f', and is named 'g'"),
        ({"messages": None}, "a.jsonl:1 has no field 'text'"),
        ({"text": "t", "labels": ["a"], "label": "a"}, "'labels' are the classes of one text: leave out 'label'"),
        ({"text": "t", "labels": [0.0, 1.0, 1.0]}, r"'labels' must be a list .* \[0.0, 1.0, 1.0\] that is \[1, 2\]"),
        ({"text": "t", "labels": [0, 1, 1]}, "each once, not"),
        ({"text": "t", "labels": ["a", 1]}, "all by name or all by number"),
        ({"text": "t", "labels": [[1]]}, "'labels' must be a list"),
        ({"text": "t", "labels": "ab"}, "'labels' must be a list"),
        ({"text": "t", "labels": [-1]}, "from 0 on"),
        ({"text": "t", "labels": [" "]}, "'labels' must be a list"),
    ],
)  # fmt: skip
def test_what_would_change_what_is_trained_is_refused(documents, record, message):
    with pytest.raises(InputError, match=message) as raised:
        documents(record)
    assert "a.jsonl:1" in str(raised.value) and "\n" not in str(raised.value)


def test_the_advice_of_refusals_works(documents):
    within = REPLY | {"content": "<think>r</think>a"}
    advised = [
        {"messages": [USER, REPLY | {"reasoning_content": "r"}]},
        {"messages": [USER, REPLY | {"weight": 0}]},
        {"messages": [{"role": "system", "content": "s"}, USER, REPLY]},
        {"prompt": "q", "completion": "a"},
        {"prompt": "q", "chosen": [within], "rejected": "b"},
        {"messages": [USER, CALLS, TOOL], "tools": [{"name": "f"}]},
    ]
    assert [type(document) for document in documents(*advised)] == [Conversation] * 4 + [Preference, Conversation]
    assert documents(advised[-1])[0].messages[1].calls == (Call("f"),)


def test_what_learns_all_of_a_text_refuses_the_weight_0(documents, tmp_path):
    found = documents({"messages": [USER, REPLY | {"weight": 0}]})
    with pytest.raises(InputError, match="PlainTexts would train on a message with the weight 0 too"):
        list(PlainTexts(JsonLines(str(tmp_path / "a.jsonl"))).documents())
    bad = Message("assistant", "a", weight=0)
    for how, told in ((Masked(), found), (Denoising(), found), (Pairs(), [Comparison((asked, said), (asked, bad))])):
        with pytest.raises(InputError, match=f"{type(how).__name__} would train on a message with the weight 0 too"):
            how.check_documents(told)
    for how, fine in (
        (Masked(), [Conversation((asked, said))]),
        (Pairs(), [Preference((asked, bad, asked), "a", "b")]),
    ):
        how.check_documents(fine)
    with pytest.raises(InputError, match="SkipGram would train on a message with the weight 0 too"):
        SkipGram().check(None, found)
