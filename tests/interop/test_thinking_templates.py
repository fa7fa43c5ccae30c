"""Templates of models that think: which answers are right, and what they do that training does not see."""
# ruff: noqa: RUF001  (DeepSeek's tokens have wide bars)

import dataclasses
from typing import Any

import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.answers import answer_of
from llm_jax.data.documents import Conversation, Rendering
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.rewards import ExactAnswer
from llm_jax.reports.text import Bleu, ExactMatch
from llm_jax.text import Call, Jinja, Message, turns

from .chat_templates import source_of

ASKED = (Message("user", "six sevens?"),)
RIGHT = dict(
    qwen3=("42", "<think>\nsix sevens\n</think>\n\n42", "<think>\n\n</think>\n\n42", "a</think>b\n</think>\n42"),
    deepseekv3=("42", "a\n</think>\n\n42", "</think>42"),
    glm4moe=("42", "\n<think>so</think>\n42", "\n<think></think>\n42"),
)
WRONG = ("43", "<think>\n42\n</think>\n\n43", "42\n</think>\n\n", "<think>\n42", "<think>\n\n</think>\n\n42.")


@pytest.fixture
def said(caplog):
    """What was warned of since the last call, for the first time since then."""

    def messages():
        found = [record.message for record in caplog.records]
        caplog.clear()
        turns.say_once.cache_clear()
        return found

    return messages


def finished_with(documents, answers, tokenizer, rendering) -> Any:
    asked = []

    class Model:
        model = Decoder(Embed(8, 300), Stack((Block(Attention(1, 1, 8), FeedForward(8)),), 1))
        context = None

        def room(self, prompt):
            return None

        def generate(self, prompts, max_tokens, temperature):
            asked.append(max_tokens)
            return answers

    return type("Finished", (), dict(
        lm=Model(), tokenizer=tokenizer, rendering=rendering, documents=lambda self, split: documents, asked=asked,
        shortened=lambda self, document: document,
    ))()  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_an_answer_is_right_whatever_was_thought_before_it(made, name):
    tokenizer, template, _ = made(source_of(name))
    rendering, texts = Rendering(template=template), [*RIGHT[name], *WRONG]
    expected = [1.0] * len(RIGHT[name]) + [0.0] * len(WRONG)
    thoughtful = (Conversation((*ASKED, Message("assistant", "42", reasoning="x"))),)
    if name == "deepseekv3":
        thoughtful = ()  # it has no place for reasoning
    for document in (Conversation(ASKED, answer="42"), Conversation((*ASKED, Message("assistant", "42"))), *thoughtful):
        known = answer_of(document, tokenizer, rendering)
        assert known is not None and (known.taught, known.thinks) == ("42", True)
        documents = [document] * len(texts)
        for reward in (ExactAnswer(), ExactAnswer().ready(tokenizer, rendering, None)):
            assert reward([""] * len(texts), texts, documents).tolist() == expected
        finished = finished_with(documents, texts, tokenizer, rendering)
        assert ExactMatch()(finished).metrics == {"validation_exact_match": len(RIGHT[name]) / len(texts)}
        finished = finished_with([document] * len(RIGHT[name]), RIGHT[name], tokenizer, rendering)
        found = Bleu(tokenize="char")(finished)
        assert found.metrics["validation_chrf"] == 100.0 and not any("said exactly" in line for line in found.lines)
        assert finished.asked == [None]  # a thought may fill the context


def test_a_thought_that_is_known_is_compared_where_the_template_writes_it(made):
    thought = "<think>\nso\n</think>\n\n42"
    document = Conversation((*ASKED, Message("assistant", thought)))
    texts = [thought, "<think>\nno\n</think>\n\n42", "42"]
    tokenizer, template, _ = made(source_of("qwen3"))
    reward = ExactAnswer().ready(tokenizer, Rendering(template=template), None)
    assert reward([""] * 3, texts, [document] * 3).tolist() == [1.0, 0.0, 0.0]
    tokenizer, template, _ = made(source_of("deepseekv3"))  # it leaves the thought out: "\n\n42" is taught
    rendering, texts = Rendering(template=template), ["so\n</think>\n\n42", "</think>42", "\n\n42", "43"]
    assert ExactAnswer().ready(tokenizer, rendering, None)([""] * 4, texts, [document] * 4).tolist() == [1, 1, 1, 0]
    assert ExactMatch()(finished_with([document] * 4, texts, tokenizer, rendering)).metrics == {
        "validation_exact_match": 0.75
    }


def test_a_last_turn_without_an_end_is_told_and_the_advice_ends_it(made, said):
    tokenizer, template, _ = made(source_of("glm4moe"))
    said()
    single = [*ASKED, Message("assistant", "42")]
    ids, _ = template.render(tokenizer, [*ASKED, Message("assistant", "42", weight=0)])
    template.render(tokenizer, single, reply=True)
    assert said() == []  # nothing is learnt of them
    assert template.render(tokenizer, single)[0] == ids
    (told,) = said()
    assert "writes no special token after a reply" in told and "<|user|>" in told
    mended = "{% if not add_generation_prompt %}{{ '<|user|>' }}{% endif %}"
    assert mended in told
    copy = Jinja(template.source + mended, (*template.needs, "<|user|>"))
    for messages in (single, [*single, *single]):
        ids, learn = copy.render(tokenizer, messages)
        assert learn[-1] and ids[-1] == tokenizer.special["<|user|>"] and said() == []
        plain, _ = template.render(tokenizer, messages, reply=True)
        assert copy.render(tokenizer, messages, reply=True)[0] == plain
        said()
    assert tokenizer.special["<|user|>"] in copy.ending(tokenizer).ends


LINES = Jinja("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
REPLY, CALLED = Message("assistant", "42"), Message("assistant", "", (Call("f", '{"x": 1}'),))


@pytest.mark.parametrize(
    ("name", "opening", "alike"),
    [
        ("deepseekv3", "'<｜Assistant｜><think>\\n'", "'<｜Assistant｜>'"),
        ("deepseek_r1_distill", "'<｜Assistant｜><think>\\n'", "'<｜Assistant｜>'"),
        ("nemotron_3_nano", "'<|im_start|>assistant\\n<think>\\n'", "'<|im_start|>assistant\\n<think>'"),
    ],
)
def test_a_prompt_that_training_does_not_see_is_told_once_and_the_advice_mends_it(made, said, name, opening, alike):
    source = source_of(name)
    assert source.count(opening) == 1
    for text, told in ((source, True), (source.replace(opening, alike), False)):
        tokenizer, template, _ = made(text)
        said()
        template.render(tokenizer, [*ASKED, REPLY], reply=True)
        assert said() == []
        for _ in range(2):
            template.render(tokenizer, [*ASKED, REPLY, *ASKED, REPLY])
        found = said()
        assert len(found) == told
        if told:
            assert "asks for a reply with" in found[0] and "<think>" in found[0]


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "gptoss", "llama3_1", "gemma3", "phi3", "cohere"])
def test_nothing_is_said_of_templates_that_ask_as_they_were_learnt(made, said, name):
    tokenizer, template, _ = made(source_of(name))
    said()
    template.render(tokenizer, [*ASKED, REPLY, *ASKED, REPLY])
    assert not [told for told in said() if "asks for a reply" in told]
    if name.startswith("qwen"):
        template.render(tokenizer, [*ASKED, CALLED])
        assert said() == []


def test_replies_of_earlier_turns_may_be_the_ones_that_are_asked_otherwise(made, said):
    tokenizer, template, _ = made(source_of("qwen3_5_think"))
    for earlier, told in ((dataclasses.replace(REPLY, weight=0), False), (REPLY, True)):
        said()
        template.render(tokenizer, [*ASKED, earlier, *ASKED, REPLY])  # the thought of the earlier one is left out
        assert bool(said()) == told
    thinking = Message("assistant", "<think>\nso\n</think>42")
    tokenizer, template, _ = made(source_of("nemotron_3_nano"))
    said()
    template.render(tokenizer, [*ASKED, thinking])
    assert said() == []


def test_what_is_not_learnt_is_not_looked_for(made, monkeypatch):
    tokenizer, template, _ = made(source_of("qwen3"))
    looked, content = [], turns.Turns.content

    def look(self, turn, text, strict):
        looked.append(turn)
        return content(self, turn, text, strict)

    monkeypatch.setattr(turns.Turns, "content", look)
    template.render(tokenizer, [*ASKED, dataclasses.replace(REPLY, weight=0), *ASKED, REPLY])
    assert looked == [3]
    with pytest.raises(InputError, match="no place for calls of tools"):
        LINES.render(tokenizer, [*ASKED, dataclasses.replace(CALLED, weight=0)])
