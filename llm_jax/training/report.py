"""What a finished run says of itself, beyond its loss: each item is a part of the experiment's `report`."""

from __future__ import annotations

import dataclasses
import importlib.util
import lzma
from collections.abc import Iterator, Sequence
from typing import Literal

from llm_jax.core.parts import Count, NonNegative, Part, Seed, Size
from llm_jax.core.returned import unusable
from llm_jax.core.tables import InputError
from llm_jax.data.answers import Answer, answer_of, as_answered, without_thought
from llm_jax.data.documents import Conversation, Example
from llm_jax.data.pipeline import SplitName
from llm_jax.inference.language_model import LanguageModel
from llm_jax.models.model import Translator
from llm_jax.text.chat import Message
from llm_jax.training.finished import Finished


@dataclasses.dataclass
class Finding:
    """Lines for people, numbers by name, and figures (PNG) by the name of their file."""

    lines: list[str]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    figures: dict[str, bytes] = dataclasses.field(default_factory=dict)


class Report(Part):
    """`report(finished) -> Finding`."""

    def __call__(self, finished: Finished) -> Finding:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ExactMatch(Report):
    """The share of answers that the model gives exactly, decoding greedily; of the first `limit` documents (0: all).

    What is asked is an example's prompt, or a conversation up to the assistant's turn at its end; what is right is the
    `answer` that is known, or that turn. An answer is right if it reads as what the model was taught does: where the
    template trims a reply, or the tokenizer puts spaces between words, so it does with what is right. What a model
    thinks, up to the last `</think>`, is not compared, unless what is right has a thought in it. Where the template or
    the tokenizer has `</think>`, a reply may be as long as the context has room: lower `batch` if that is too much
    memory.
    """

    split: SplitName = "validation"
    limit: Count = 0
    batch: Size = 500

    def __call__(self, finished):
        questions = _questions(finished, self.split, self.limit)
        answers = _answers(finished.lm, questions, self.batch)
        right = sum(answer == q.answer.taught for answer, q in zip(answers, questions, strict=True))
        lines = [f"{self.split}: {right}/{len(questions)} answers exact"]
        if unsayable := sum(not q.answer.sayable for q in questions):
            lines.append(f"  {unsayable} cannot be given: the tokenizer has no token for a part of them")
        return Finding(lines, {f"{self.split}_exact_match": right / len(questions)})


@dataclasses.dataclass(frozen=True)
class Bleu(Report):
    """BLEU (Papineni et al. 2002) and chrF (Popovic 2015) of answers given greedily; the first `limit` (0: all).

    Both are sacrebleu's, whose signature is shown: it says what a figure may be compared with. `tokenize` is how BLEU
    splits words ("none" where they are split already). The first `show` answers are shown. They
    are compared with the text of the documents. Where the tokenizer or the template changes that, a line says what it
    would score itself, written as the model was taught it. Thoughts are left out, and have room, as in `ExactMatch`.

    Raises:
      InputError: nothing is asked, or sacrebleu is not installed.
    """

    split: SplitName = "validation"
    limit: Count = 0
    batch: Size = 100
    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    show: Count = 2

    def __call__(self, finished):
        if importlib.util.find_spec("sacrebleu") is None:
            raise InputError("Bleu needs sacrebleu: pip install -e '.[metrics]', or leave it out of report")
        import sacrebleu

        questions = _questions(finished, self.split, self.limit)
        given = _answers(finished.lm, questions, self.batch)
        bleu, chrf = sacrebleu.BLEU(tokenize=self.tokenize), sacrebleu.CHRF()
        wanted = [[q.answer.text for q in questions]]

        def scores(said: Sequence[str]) -> dict[str, float]:
            both = (("bleu", bleu), ("chrf", chrf))
            return {name: metric.corpus_score(said, wanted).score for name, metric in both}

        found, taught = scores(given), [q.answer.taught for q in questions]
        lines = [f"{self.split}: BLEU {found['bleu']:.2f}, chrF {found['chrf']:.2f} of {len(questions)} answers"]
        if taught != wanted[0]:
            most = scores(taught)
            lines.append(f"  said exactly as taught they have BLEU {most['bleu']:.2f}, chrF {most['chrf']:.2f}")
        lines += [f"  BLEU {bleu.get_signature()}", f"  chrF {chrf.get_signature()}"]
        for q, answer in list(zip(questions, given, strict=True))[: self.show]:
            asked = q.prompt if isinstance(q.prompt, str) else q.prompt.messages[-1].content
            lines += ["", f"  source  {asked}", f"  model   {answer}", f"  wanted  {q.answer.text}"]
        return Finding(lines, {f"{self.split}_{name}": score for name, score in found.items()})


@dataclasses.dataclass(frozen=True)
class _Question:
    prompt: str | Conversation
    answer: Answer


def _questions(finished: Finished, split: SplitName, limit: int) -> list[_Question]:
    anew = isinstance(finished.lm.model, Translator)
    found: list[_Question] = []
    for document in finished.documents(split):
        if not isinstance(document, (Example, Conversation)):
            continue
        if answer := answer_of(document, finished.tokenizer, finished.rendering, anew):
            asked = document.prompt if isinstance(document, Example) else Conversation(document.asked, document.tools)
            found.append(_Question(asked, answer))
        if limit and len(found) == limit:
            break
    if not found:
        raise InputError(
            "answers can be judged of examples, and of conversations with an answer or a reply at the end, "
            f"and the {split} documents have none"
        )
    return found


def _answers(lm: LanguageModel, questions: Sequence[_Question], batch: int) -> list[str]:
    """What the model answers greedily, without what it thinks before it.

    That is no longer than the longest answer wanted, and a token to end it; a thought may fill the context.
    """
    thinks = any(q.answer.thinks for q in questions)
    longest = None if thinks else max(q.answer.tokens for q in questions) + 1
    answers = []
    for some in (questions[i : i + batch] for i in range(0, len(questions), batch)):
        said = lm.generate([q.prompt for q in some], max_tokens=longest, temperature=0.0)
        for question, text in zip(some, said, strict=True):
            whole = text if isinstance(question.prompt, str) else as_answered(question.prompt, text)
            answers.append(without_thought(whole, question.answer.taught))
    return answers


@dataclasses.dataclass(frozen=True)
class Compression(Report):
    """What `xz -9e` makes of the held-out text alone, in bits per byte of text: the figure to be below."""

    def __call__(self, finished):
        texts = [d.text() for d in finished.documents("validation")]
        size = sum(len(s.encode()) for d in finished.documents("validation") for s in d.strings())
        packed = lzma.compress("\n".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)
        bits = 8 * len(packed) / size
        return Finding(
            [f"for comparison, xz -9e packs the held-out text at {bits:.3f} bits/byte"], {"xz_bits_per_byte": bits}
        )


@dataclasses.dataclass(frozen=True)
class SampledConversations(Report):
    """Held-out people talk to the model: their side is from the data, the replies are sampled."""

    count: Size = 3
    turns: Size = 2
    max_tokens: Size = 48
    temperature: NonNegative = 0.7
    seed: Seed = 0

    def __call__(self, finished):
        lines = []
        held_out = (d for d in finished.documents("validation") if isinstance(d, Conversation))
        asked = [[m for m in d.messages if m.role == "user"][: self.turns] for d in held_out]
        for number, questions in enumerate([q for q in asked if len(q) == self.turns][: self.count]):
            said: list[Message] = []
            lines.append("")
            for question in questions:
                said.append(question)
                lines.append(f"  person  {question.content}")
                try:
                    reply = self._reply(finished.lm, said, self.seed + number)
                except InputError as error:  # the question fills the context: the other conversations are still told
                    lines.append(f"  (no reply: {error})")
                    break
                said.append(Message("assistant", reply))
                lines.append(f"  model   {reply.strip()}")
        return Finding(["sampled conversations with people of the held-out data:", *lines])

    def _reply(self, lm: LanguageModel, said: Sequence[Message], seed: int) -> str:
        pieces = lm.reply(said, max_tokens=self.max_tokens, temperature=self.temperature, top_p=0.95, seed=seed)
        return "".join(pieces)


@dataclasses.dataclass(frozen=True)
class Samples(Report):
    """Texts that begin with each of `prompts`."""

    prompts: tuple[str, ...] = ("",)
    max_tokens: Size = 100
    temperature: NonNegative = 0.8
    seed: Seed = 0

    def __call__(self, finished):
        room = (finished.lm.context or self.max_tokens) - 1
        texts = finished.lm.generate(
            list(self.prompts),
            max_tokens=min(self.max_tokens, room - max(len(finished.lm.tokenizer.encode(p)) for p in self.prompts)),
            temperature=self.temperature,
            seed=self.seed,
        )
        return Finding([line for p, t in zip(self.prompts, texts, strict=True) for line in ("", p + t)])


def findings(finished: Finished) -> Iterator[Finding]:
    """Of each part of the experiment's report in turn."""
    for report in finished.experiment.report:
        assert isinstance(report, Report)
        finding: object = report(finished)
        if not isinstance(finding, Finding):
            raise unusable(f"the report {type(report).__name__}", finding, "a Finding of llm_jax.training.report")
        yield finding


REPORTS = dict(
    ExactMatch=ExactMatch, Bleu=Bleu, Compression=Compression, SampledConversations=SampledConversations,
    Samples=Samples,
)  # fmt: skip
