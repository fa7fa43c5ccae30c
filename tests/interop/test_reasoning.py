"""Reasoning and weights of messages under published templates, beside `transformers`."""

import shutil

import pytest

from llm_jax.core.errors import InputError
from llm_jax.interop.tokenizers.import_ import import_tokenizer
from llm_jax.text import Alpaca, Call, ChatML, ChatTemplate, Jinja, Llama3, Message

from .chat_templates import source_of

transformers = pytest.importorskip("transformers")
ASKED = Message("user", "How much is 2 + 2?")
THOUGHT = Message("assistant", "It is 4.", reasoning="Two and two.\n\nFour <|im_end|>.")
TALK = [
    Message("system", "be kind"), ASKED, THOUGHT, Message("user", "And 3 + 3?"),
    Message("assistant", "", (Call("add", '{"a": 3}'),), reasoning="I can ask."), Message("tool", "6"),
    Message("assistant", "6.", reasoning="As the tool says."),
]  # fmt: skip


@pytest.fixture(scope="module")
def qwen3(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reasoning") / "qwen"
    shutil.copytree(published["qwen"], folder)
    (folder / "chat_template.jinja").write_text(source_of("qwen3"))
    return (*import_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder))


def theirs_of(theirs, messages, reply=False):
    said = []
    for m in messages:
        calls = [dict(function=dict(name=c.name, arguments=c.arguments)) for c in m.calls]
        beside = (dict(tool_calls=calls) if calls else {}) | (
            dict(reasoning_content=m.reasoning) if m.reasoning else {}
        )
        said.append(dict(role=m.role, content=m.content) | beside)
    return theirs.apply_chat_template(said, add_generation_prompt=reply, tokenize=False)


@pytest.mark.parametrize("count", range(2, 8))
@pytest.mark.parametrize("reply", [False, True])
def test_reasoning_stands_where_transformers_writes_it(qwen3, count, reply):
    ours, template, theirs = qwen3
    said = TALK[:count]
    text = theirs_of(theirs, said, reply)
    ids, _ = template.render(ours, said, reply)
    spelt = {i: name for name, i in ours.special.items() if name.startswith("<")}
    assert "".join(spelt.get(i) or ours.decode([i]) for i in ids) == text
    assert ("Two and two." in text) == (count == 3)  # of turns before the last question Qwen 3 leaves it out


def test_reasoning_is_learnt_with_what_is_said_after_it(qwen3):
    ours, template, _ = qwen3
    ids, learn = template.render(ours, [ASKED, THOUGHT])
    prompt, _ = template.render(ours, [ASKED], reply=True)
    learnt = [i for i, yes in zip(ids, learn, strict=True) if yes]
    assert ids[: len(prompt)] == prompt and ids[len(prompt) :][: len(learnt)] == learnt
    assert learnt[-1] == ours.special["<|im_end|>"] and learnt.count(learnt[-1]) == 1
    assert ours.decode(learnt) == f"<think>\n{THOUGHT.reasoning}\n</think>\n\nIt is 4."
    ids, learn = template.render(ours, TALK)
    said = ours.decode([i for i, yes in zip(ids, learn, strict=True) if yes])
    assert "Two and two." not in said and said.count("<think>") == 2
    assert said.startswith("It is 4.<think>\nI can ask.\n</think>\n\n<tool_call>") and said.endswith(
        "says.\n</think>\n\n6."
    )


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("look", [".{}", "['{}']", ".get('{}')"])
def test_the_field_is_the_one_that_the_template_reads(qwen3, field, look):
    at = look.format(field)
    template = Jinja(f"{{% for m in messages %}}{{{{ m{at} or '' }}}}|{{{{ m.content }}}}<|im_end|>{{% endfor %}}")
    ids, _ = template.render(qwen3[0], [ASKED, Message("assistant", "4", reasoning="two")])
    assert qwen3[0].decode(ids).endswith("two|4")


@pytest.mark.parametrize("template", [ChatTemplate(), ChatML(), Llama3(), Alpaca()])
def test_a_template_without_a_place_for_reasoning_refuses_it_and_its_advice_works(template, qwen3):
    ours, other, _ = qwen3
    names = ("bos", "eos", "user", "assistant", "end_of_turn", *template.tokens())
    ours = ours.having({name: ours.special["<|im_end|>"] for name in names if name not in ours.special})
    for reply in (False, True):
        with pytest.raises(InputError, match=r"no place for the assistant's reasoning: set data.rendering.template to"):
            template.render(ours, [ASKED, THOUGHT], reply)
    assert other.render(ours, [ASKED, THOUGHT])[0]
    within = f"<think>\n{THOUGHT.reasoning}\n</think>\n\n{THOUGHT.content}"
    ids, learn = template.render(ours, [ASKED, Message("assistant", within)])
    assert ours.decode([i for i, yes in zip(ids, learn, strict=True) if yes]) == within


def test_reasoning_that_the_last_turn_would_lose_is_refused(qwen3):
    template = Jinja(
        "{% for m in messages %}{{ m.reasoning_content if m.tool_calls }}{{ m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(InputError, match="leaves out the reasoning of the last turn"):
        template.render(qwen3[0], [ASKED, THOUGHT])
    assert template.render(qwen3[0], [ASKED, THOUGHT, ASKED])[0]


@pytest.mark.parametrize("called", [(), (Call("f"),)])
def test_nothing_is_learnt_of_a_turn_with_the_weight_0(qwen3, called):
    ours, published, _ = qwen3
    bad = Message("assistant", "bad", called, weight=0)
    said = [ASKED, bad, ASKED, Message("assistant", "good", called)]
    weighty = [ASKED, Message("assistant", "bad", called), *said[2:]]
    for template in (published, ChatML()):
        ids, learn = template.render(ours, said)
        same, both = template.render(ours, weighty)
        assert ids == same and sum(both) > sum(learn)
        learnt = ours.decode([i for i, yes in zip(ids, learn, strict=True) if yes])
        assert learnt.startswith(("good", "<think>\n\n</think>\n\ngood"))
        assert [i for i, yes in zip(ids, learn, strict=True) if yes][-1] == ours.special["<|im_end|>"]
