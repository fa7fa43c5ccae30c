import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import sacrebleu

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Conversation, Example, Rendering, Text
from llm_jax.experiment import Finding, Report
from llm_jax.inference.language_model import LanguageModel
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.norms import NoNorm, RMSNorm
from llm_jax.layers.positions import Rope
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side
from llm_jax.reports.base import findings
from llm_jax.reports.text import Bleu, ExactMatch, SampledConversations, Samples
from llm_jax.text.calls import Call
from llm_jax.text.chat import Message
from llm_jax.text.recipes import Bytes, WordPiece

MODEL = Decoder(Embed(8, 300), Stack((Block(Attention(1, 1, 8), FeedForward(8)),), 1))


def saying(generate, room=None) -> Any:
    """A language model that says what `generate` does, and has so much room after every prompt."""
    return SimpleNamespace(generate=generate, model=MODEL, context=None, room=lambda prompt: room)


def finished_with(lm, documents, tokenizer=None, rendering=Rendering()) -> Any:
    return SimpleNamespace(
        lm=lm, tokenizer=tokenizer or Bytes().train([]), rendering=rendering, documents=lambda split: documents,
        shortened=lambda document: document,
    )  # fmt: skip


def test_a_question_that_leaves_no_room_for_a_reply_is_told_and_the_others_go_on():
    def reply(said, **_):
        if "long" in said[-1].content:
            raise InputError("the latest message alone leaves no room")
        return iter(["fine", ", thanks"])

    asked = [Conversation((Message("user", text),)) for text in ("so long " * 9, "how are you?")]
    finished: Any = SimpleNamespace(lm=SimpleNamespace(reply=reply), documents=lambda split: asked)
    lines = SampledConversations(turns=1)(finished).lines
    assert "  (no reply: the latest message alone leaves no room)" in lines
    assert lines[-2:] == ["  person  how are you?", "  model   fine, thanks"]


def test_bleu_is_sacrebleus_of_greedy_answers(monkeypatch):
    wanted = ["the cat sat on the mat", "a dog ran over the hill", "birds fly south in the cold winter"]
    said = ["the cat sat on a mat", "a dog ran over the hill", "in winter birds fly to the south"]
    asked = []

    def generate(prompts, max_tokens, temperature):
        assert temperature == 0.0 and max_tokens == [max(map(len, wanted)) + 1] * len(prompts)
        asked.append(len(prompts))
        return [said[int(prompt)] for prompt in prompts]

    documents: list[Any] = [Example(str(i), answer) for i, answer in enumerate(wanted)]
    lm = saying(generate)
    finished = finished_with(lm, documents)
    found = Bleu(batch=2, show=1)(finished)
    assert asked == [2, 1] and f"  model   {said[0]}" in found.lines and f"  model   {said[1]}" not in found.lines
    assert found.metrics == {
        "validation_bleu": sacrebleu.corpus_bleu(said, [wanted]).score,
        "validation_chrf": sacrebleu.corpus_chrf(said, [wanted]).score,
    }
    assert 20 < found.metrics["validation_bleu"] < 90
    limited = Bleu(limit=1, tokenize="char")
    lm.generate = lambda prompts, max_tokens, temperature: said[: len(prompts)]
    one = sacrebleu.corpus_bleu(said[:1], [wanted[:1]], tokenize="char").score
    assert limited(finished).metrics["validation_bleu"] == one
    documents[:] = [Text("no answer")]
    with pytest.raises(InputError, match="the validation documents have none"):
        limited(finished)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[metrics\]'"):
        limited(finished)


def test_exact_answers_of_examples_and_of_conversations():
    asked = Message("user", "q")
    called = Message("assistant", "", (Call("f", '{"x": 1}'),))
    documents: list[Any] = [
        Example("1+1=", "2"),
        Conversation((asked, Message("assistant", "a"))),
        Conversation((asked, called), tools=("{}",)),
        Conversation((asked, called, Message("tool", "t"), Message("assistant", "b"))),
        Conversation((asked,)),
        Conversation((asked,), answer="4"),
        Conversation((asked, Message("assistant", "2 + 2 = 4")), answer="4"),
        Text("no answer"),
    ]
    answers = ["2", "a", '<tool_call>{"name": "f", "arguments": {"x":1}}</tool_call>', "wrong", "4", "2 + 2 = 4"]
    prompts = []

    def generate(given, max_tokens, temperature):
        assert temperature == 0.0 and max_tokens == [len(called.text()) + 1] * len(given)
        prompts.extend(given)
        return [answers[len(prompts) - len(given) + i] for i in range(len(given))]

    lm = saying(generate)
    finished = finished_with(lm, documents)
    found = ExactMatch(batch=3)(finished)
    assert found.lines == ["validation: 4/6 answers exact"] and found.metrics == {"validation_exact_match": 4 / 6}
    assert prompts == [
        "1+1=",
        Conversation((asked,)),
        Conversation((asked,), tools=("{}",)),
        Conversation((asked, called, Message("tool", "t"))),
        Conversation((asked,)),
        Conversation((asked,)),
    ]


def test_each_question_has_the_room_that_there_is_after_its_prompt():
    """In a context of 32 each of these is a row: bos, 25 + 2 and eos; bos, 1 + 25 and eos. The last is not asked."""
    texts = (("a" * 25, "bb"), ("a", "b" * 25), ("a" * 30, "bb"), ("a" * 32, "b"))
    documents: list[Any] = [Example(*pair) for pair in texts]
    whole = LanguageModel(dataclasses.replace(MODEL, context=32), {}, Bytes().train([]))
    rooms = []

    def generate(given, max_tokens, temperature):
        rooms.extend(max_tokens)
        return [{26: "bb", 2: "b" * 25}.get(len(prompt) + 1, "bb") for prompt in given]

    lm = saying(generate)
    lm.room, lm.context = whole.room, 32
    found = ExactMatch()(finished_with(lm, documents))
    assert rooms == [7, 26, 2], "no more than the longest answer and its end, nor than 33 tokens with the prompt"
    assert found.metrics == {"validation_exact_match": 1.0, "validation_left_out": 1.0}
    assert found.lines[1:] == ["  1 of 4 prompts leave no room for an answer: they are left out"]
    lm.room = lambda prompt: 1
    told = Bleu(show=0)(finished_with(lm, documents[:2])).lines
    assert "  2 answers have more tokens than there is room for: they cannot be given" in told
    lm.room = lambda prompt: 0
    with pytest.raises(InputError, match=r"none of 4 validation prompts leaves room .* context of 32 tokens: raise"):
        ExactMatch().check(finished_with(lm, documents))


def test_a_sample_of_a_translator_has_the_room_of_a_target_whatever_the_source():
    side = Side(Stack((Block(Attention(1, 1, 8), FeedForward(8)),), 1), Rope(), RMSNorm(), NoNorm())
    model = EncoderDecoder(Embed(8, 300), side, side, context=8, source_context=40, start=1)
    lm = LanguageModel(model, {}, Bytes().train([]))
    asked = []
    lm.generate = lambda prompts, **settings: asked.append(settings["max_tokens"]) or ["x" for _ in prompts]  # pyright: ignore[reportAttributeAccessIssue]
    Samples(("a" * 30, "b"))(finished_with(lm, []))
    Samples(("a" * 30,), max_tokens=3)(finished_with(lm, []))
    assert asked == [[8, 8], [3]]
    with pytest.raises(InputError, match=r"the prompt 'aaa.* leaves no room for a text"):
        Samples(("b", "a" * 40)).check(finished_with(lm, []))


def test_bleu_tells_what_an_answer_said_exactly_as_taught_would_score():
    answers = ["the cat isn't on the mat", "a dog ran over the hill"]
    words = WordPiece(200).train([*answers] * 9)
    documents: list[Any] = [Example("q", answer) for answer in answers]
    lm = saying(lambda given, **_: ["the cat isn ' t on the mat", answers[1]])
    found = Bleu(show=0)(finished_with(lm, documents, words))
    told = f"BLEU {found.metrics['validation_bleu']:.2f}, chrF {found.metrics['validation_chrf']:.2f}"
    assert found.metrics["validation_bleu"] < 90 and f"  said exactly as taught they have {told}" in found.lines
    (lossless,) = [line for line in Bleu(show=0)(finished_with(lm, documents)).lines if "validation" in line]
    assert told in lossless, "the figure is what it is, whatever the tokenizer"
    assert "taught" not in "".join(Bleu(show=0)(finished_with(lm, documents)).lines)


def test_a_report_that_cannot_be_made_is_a_line_and_the_others_are_made():
    class Mine(Report):
        def __call__(self, finished):
            return {"loss": 1.0}

    class Refused(Report):
        def __call__(self, finished):
            raise InputError("no such thing:\nuse another")

    class Made(Report):
        def __call__(self, finished):
            return Finding(["made"], {"a": 1.0})

    class Broken(Report):
        def __call__(self, finished):
            raise KeyError("x")

    finished: Any = SimpleNamespace(experiment=SimpleNamespace(report=(Mine(), Refused(), Made())))
    mine, refused, made = findings(finished)
    assert made == Finding(["made"], {"a": 1.0}) and mine.failed and refused.failed
    assert "cannot be made: the report Mine returned {'loss': 1.0} (dict): it must return a" in mine.lines[0]
    assert refused.lines == ["the report Refused cannot be made: no such thing: use another"]
    finished.experiment.report = (Broken(), Made())
    found = []
    with pytest.raises(KeyError):  # a fault of the code is no bad input: it is raised when the others are made
        for finding in findings(finished):
            found.append(finding)
    assert [finding.failed for finding in found] == [True, False]
