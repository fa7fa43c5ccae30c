from types import SimpleNamespace
from typing import Any

import pytest
import sacrebleu

from llm_jax.core.tables import InputError
from llm_jax.data.documents import Conversation, Example, Rendering, Text
from llm_jax.text.calls import Call
from llm_jax.text.chat import Message
from llm_jax.text.recipes import Bytes, WordPiece
from llm_jax.training.report import Bleu, ExactMatch, Report, SampledConversations, findings


def finished_with(lm, documents, tokenizer=None, rendering=Rendering()) -> Any:
    tokenizer = tokenizer or Bytes().train([])
    return SimpleNamespace(lm=lm, tokenizer=tokenizer, rendering=rendering, documents=lambda split: documents)


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
        assert temperature == 0.0 and max_tokens == max(map(len, wanted)) + 1
        asked.append(len(prompts))
        return [said[int(prompt)] for prompt in prompts]

    documents: list[Any] = [Example(str(i), answer) for i, answer in enumerate(wanted)]
    lm = SimpleNamespace(generate=generate, model=None)
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
        assert temperature == 0.0 and max_tokens == len(called.text()) + 1
        prompts.extend(given)
        return [answers[len(prompts) - len(given) + i] for i in range(len(given))]

    lm = SimpleNamespace(generate=generate, model=None)
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


def test_bleu_tells_what_an_answer_said_exactly_as_taught_would_score():
    answers = ["the cat isn't on the mat", "a dog ran over the hill"]
    words = WordPiece(200).train([*answers] * 9)
    documents: list[Any] = [Example("q", answer) for answer in answers]
    lm = SimpleNamespace(generate=lambda given, **_: ["the cat isn ' t on the mat", answers[1]], model=None)
    found = Bleu(show=0)(finished_with(lm, documents, words))
    told = f"BLEU {found.metrics['validation_bleu']:.2f}, chrF {found.metrics['validation_chrf']:.2f}"
    assert found.metrics["validation_bleu"] < 90 and f"  said exactly as taught they have {told}" in found.lines
    (lossless,) = [line for line in Bleu(show=0)(finished_with(lm, documents)).lines if "validation" in line]
    assert told in lossless, "the figure is what it is, whatever the tokenizer"
    assert "taught" not in "".join(Bleu(show=0)(finished_with(lm, documents)).lines)


def test_what_a_report_of_ones_own_finds_is_a_finding():
    class Mine(Report):
        def __call__(self, finished):
            return {"loss": 1.0}

    finished: Any = SimpleNamespace(experiment=SimpleNamespace(report=(Mine(),)))
    with pytest.raises(InputError, match=r"the report Mine returned \{'loss': 1.0\} \(dict\): it must return a"):
        list(findings(finished))
