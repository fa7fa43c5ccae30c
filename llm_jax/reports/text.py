"""Reports on texts: exact answers, BLEU, samples, conversations, and how far `xz` packs the held-out text."""

from __future__ import annotations

import dataclasses
import importlib.util
import lzma
from collections.abc import Sequence
from typing import Literal

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, NonNegative, Seed, Size, conform
from llm_jax.data.documents import Conversation
from llm_jax.data.pipeline import SplitName
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Finding, Report
from llm_jax.inference.language_model import LanguageModel
from llm_jax.models.model import Generator
from llm_jax.reports.questions import answers, questions, writing
from llm_jax.text.chat import Message


@dataclasses.dataclass(frozen=True)
class ExactMatch(Report):
    """The share of answers that the model gives exactly, decoding greedily; of the first `limit` documents (0: all).

    What is asked is an example's prompt, or a conversation up to the assistant's turn at its end; what is right is the
    `answer` that is known, or that turn. An answer is right if it reads as what the model was taught does: where the
    template trims a reply, or the tokenizer puts spaces between words, so it does with what is right. What a model
    thinks, up to the last `</think>`, is not compared, unless what is right has a thought in it. Where the template or
    the tokenizer has `</think>`, a reply may be as long as the context has room: lower `batch` if that is too much
    memory.

    A prompt is cut as it is in the rows of the data. One that leaves no room for an answer in the model's context is
    left out and counted; an answer that is longer than the room is not given.
    """

    split: SplitName = "validation"
    limit: Count = 0
    batch: Size = 500

    def check(self, planned):
        questions(planned, self.split, limit=1)

    def __call__(self, finished):
        asked = questions(finished, self.split, self.limit)
        given = answers(finished.lm, asked.questions, self.batch)
        right = sum(answer == q.answer.taught for answer, q in zip(given, asked.questions, strict=True))
        lines = [f"{self.split}: {right}/{len(asked.questions)} answers exact"]
        if unsayable := sum(not q.answer.sayable for q in asked.questions):
            lines.append(f"  {unsayable} cannot be given: the tokenizer has no token for a part of them")
        metrics = {f"{self.split}_exact_match": right / len(asked.questions)}
        return Finding(lines + asked.lines(), metrics | asked.metrics())


@dataclasses.dataclass(frozen=True)
class Bleu(Report):
    """BLEU (Papineni et al. 2002) and chrF (Popovic 2015) of answers given greedily; the first `limit` (0: all).

    Both are sacrebleu's, whose signature is shown: it says what a figure may be compared with. `tokenize` is how BLEU
    splits words ("none" where they are split already). The first `show` answers are shown. They
    are compared with the text of the documents. Where the tokenizer or the template changes that, a line says what it
    would score itself, written as the model was taught it. Thoughts are left out, and prompts cut, as in `ExactMatch`.

    Raises:
      InputError: nothing is asked, or sacrebleu is not installed.
    """

    split: SplitName = "validation"
    limit: Count = 0
    batch: Size = 100
    tokenize: Literal["13a", "intl", "char", "zh", "none"] = "13a"
    show: Count = 2

    def check(self, planned):
        if importlib.util.find_spec("sacrebleu") is None:
            raise InputError("Bleu needs sacrebleu: pip install -e '.[metrics]', or leave it out of report")
        questions(planned, self.split, limit=1)

    def __call__(self, finished):
        self.check(finished)
        import sacrebleu

        asked = questions(finished, self.split, self.limit)
        given = answers(finished.lm, asked.questions, self.batch)
        bleu, chrf = sacrebleu.BLEU(tokenize=self.tokenize), sacrebleu.CHRF()
        wanted = [[q.answer.text for q in asked.questions]]

        def scores(said: Sequence[str]) -> dict[str, float]:
            both = (("bleu", bleu), ("chrf", chrf))
            return {name: metric.corpus_score(said, wanted).score for name, metric in both}

        found, taught = scores(given), [q.answer.taught for q in asked.questions]
        lines = [f"{self.split}: BLEU {found['bleu']:.2f}, chrF {found['chrf']:.2f} of {len(asked.questions)} answers"]
        if taught != wanted[0]:
            most = scores(taught)
            lines.append(f"  said exactly as taught they have BLEU {most['bleu']:.2f}, chrF {most['chrf']:.2f}")
        lines += [*asked.lines(), f"  BLEU {bleu.get_signature()}", f"  chrF {chrf.get_signature()}"]
        for q, answer in list(zip(asked.questions, given, strict=True))[: self.show]:
            source = q.prompt if isinstance(q.prompt, str) else q.prompt.messages[-1].content
            lines += ["", f"  source  {source}", f"  model   {answer}", f"  wanted  {q.answer.text}"]
        metrics = {f"{self.split}_{name}": score for name, score in found.items()}
        return Finding(lines, metrics | asked.metrics())


@dataclasses.dataclass(frozen=True)
class Compression(Report):
    """What `xz -9e` makes of the held-out text alone, in bits per byte of text: the figure to be below."""

    def check(self, planned):
        if not any(any(document.strings()) for document in planned.documents("validation")):
            raise InputError("Compression needs held-out text, and the validation documents say nothing")

    def __call__(self, finished):
        self.check(finished)
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

    def check(self, planned):
        self._asked(planned)
        writing(planned)

    def __call__(self, finished):
        lines = []
        for number, asked in enumerate(self._asked(finished)):
            said: list[Message] = []
            lines.append("")
            for question in asked:
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

    def _asked(self, finished: Finished) -> list[list[Message]]:
        held_out = (d for d in finished.documents("validation") if isinstance(d, Conversation))
        asked = [[m for m in d.messages if m.role == "user"][: self.turns] for d in held_out]
        if found := [messages for messages in asked if len(messages) == self.turns][: self.count]:
            return found
        most = max(map(len, asked), default=0)
        advice = f"set report.turns={most}" if most else "leave it out of report"
        raise InputError(
            f"SampledConversations needs held-out conversations in which people speak turns={self.turns} times, and "
            f"there are none: {advice}"
        )

    def _reply(self, lm: LanguageModel, said: Sequence[Message], seed: int) -> str:
        pieces = lm.reply(said, max_tokens=self.max_tokens, temperature=self.temperature, top_p=0.95, seed=seed)
        return "".join(pieces)


@dataclasses.dataclass(frozen=True)
class Samples(Report):
    """Texts that begin with each of `prompts`: of `max_tokens`, or of as many as the context has room for.

    Of a translator they are translations of the prompts.
    """

    prompts: tuple[str, ...] = ("",)
    max_tokens: Size = 100
    temperature: NonNegative = 0.8
    seed: Seed = 0

    def check(self, planned):
        if not self.prompts:
            raise InputError('Samples needs prompts: ("",) is a text from the beginning')
        self._most(planned)

    def _most(self, finished: Finished) -> list[int]:
        """How many tokens follow each prompt."""
        lm = writing(finished)
        rooms = [lm.room(prompt) for prompt in self.prompts]
        if 0 in rooms:
            raise InputError(
                f"the prompt {self.prompts[rooms.index(0)][:40]!r} leaves no room for a text: the model reads "
                f"{conform(lm.model, Generator, 'model').reads()} tokens"
            )
        return [self.max_tokens if room is None else min(self.max_tokens, room) for room in rooms]

    def __call__(self, finished):
        texts = finished.lm.generate(
            list(self.prompts), max_tokens=self._most(finished), temperature=self.temperature, seed=self.seed
        )
        return Finding([line for p, t in zip(self.prompts, texts, strict=True) for line in ("", p + t)])


REPORTS = dict(
    ExactMatch=ExactMatch, Bleu=Bleu, Compression=Compression, SampledConversations=SampledConversations,
    Samples=Samples,
)  # fmt: skip
