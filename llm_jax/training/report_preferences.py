"""What preferences made of a model: the reward of what it writes, its distance from where it began; a judge's skill."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.core.parts import Size, conform
from llm_jax.core.tables import InputError
from llm_jax.data.documents import Conversation, Document, Example, Preference
from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.language_model import LanguageModel
from llm_jax.inference.sampling import Sampling
from llm_jax.layers.tokens import Tokens
from llm_jax.models.heads import Scorer
from llm_jax.models.model import Generator
from llm_jax.objectives.preferences import apart
from llm_jax.objectives.rewards import Reward
from llm_jax.text.special import frame
from llm_jax.training.finished import Finished, language_model
from llm_jax.training.report import Finding, Report

Z = 1.96  # standard errors to either side hold 95%


@dataclasses.dataclass(frozen=True)
class Rewarded(Report):
    """How good replies to held-out prompts are, sampled from the model and, if it has one, from its reference.

    The gain is the mean difference by prompt, with its 95% interval. The divergence KL(model || reference) is taken
    over the whole vocabulary at each place of the model's replies: its mean per token, and its sum per reply.

    Raises:
      InputError: the held-out documents have no prompts.
    """

    reward: Reward
    limit: Size = 200
    max_tokens: Size = 64
    temperature: float = 1.0
    batch: Size = 50
    seed: int = 0
    show: int = 2

    def __call__(self, finished):
        held_out = finished.documents("validation")
        asked = [p for d in held_out if (p := _prompt(finished.lm, d)) is not None][: self.limit]
        if not asked:
            raise InputError("Rewarded needs held-out conversations, preferences or examples: there are no prompts")
        here = self._sampled(finished.lm, asked)
        found = dict(reward=here.score_N.mean(), reply_tokens=here.size_N.mean())
        lines = [f"{len(asked)} held-out prompts: {here}"]
        shown = [asked, here.texts]
        if finished.frozen and "reference" in finished.frozen:
            reference = _reference(finished)
            there = self._sampled(reference, asked)
            gain_N = here.score_N - there.score_N
            error = Z * gain_N.std(ddof=1) / math.sqrt(len(gain_N)) if len(gain_N) > 1 else math.nan
            kl = divergence(finished.lm, reference, [a.ids for a in asked], here.ids, self.batch)
            per_token, per_reply = np.concatenate(kl).mean(), np.mean([kl_T.sum() for kl_T in kl])
            found |= dict(reward_gain=gain_N.mean(), kl=per_token, kl_per_reply=per_reply)
            found["reference_reward"] = there.score_N.mean()
            lines += [
                f"  its reference: {there}, so a gain of {gain_N.mean():.3f} +- {error:.3f}",
                f"  KL to the reference {per_token:.4f} nats a token, {per_reply:.3f} a reply",
            ]
            shown.append(there.texts)
        for about, *texts in list(zip(*shown, strict=True))[: self.show]:
            names = ("prompt", "model", "reference")
            lines += ["", *(f"  {name:9}  {said}" for name, said in zip(names, (about.text, *texts), strict=False))]
        return Finding(lines, {name: float(value) for name, value in found.items()})

    def _sampled(self, lm: LanguageModel, asked: Sequence[_Asked]) -> _Sampled:
        wrote: list[list[int]] = []
        for i in range(0, len(asked), self.batch):
            some = [a.ids for a in asked[i : i + self.batch]]
            wrote += write(lm, some, self.max_tokens, self.temperature, range(i, i + len(some)), self.seed)
        texts = [lm.tokenizer.decode(ids) for ids in wrote]
        return _Sampled(wrote, texts, self.reward([a.text for a in asked], texts, [a.document for a in asked]))


@dataclasses.dataclass(frozen=True)
class _Asked:
    ids: list[int]
    text: str
    document: Document


@dataclasses.dataclass(frozen=True)
class _Sampled:
    ids: list[list[int]]
    texts: list[str]
    score_N: np.ndarray

    @property
    def size_N(self) -> np.ndarray:
        return np.array([len(ids) for ids in self.ids])

    def __str__(self) -> str:
        return f"reward {self.score_N.mean():.3f}, {self.size_N.mean():.1f} tokens a reply"


def _prompt(lm: LanguageModel, document: Document) -> _Asked | None:
    """What of a document is to be gone on from; None where there is nothing."""
    match document:
        case Preference(messages):
            said = messages
        case Conversation(messages) if messages[-1].role == "assistant":
            said = messages[:-1]
        case Example(prompt):
            before = frame(lm.tokenizer.special, "bos", lm.bos)
            after = frame(lm.tokenizer.special, "eos", lm.prompt_eos)
            return _Asked([*before, *lm.tokenizer.encode(prompt), *after], prompt, document)
        case _:
            return None
    ids, _ = lm.template.render(lm.tokenizer, said, reply=True)
    return _Asked(ids, "\n".join(m.content for m in said), document)


def _reference(finished: Finished) -> LanguageModel:
    tuning: Any = finished.experiment.tuning
    params = finished.frozen["reference"]
    if tuning is not None:
        params = tuning.original(params, finished.frozen["base"])
    return language_model(finished.experiment, finished.tokenizer, params)


def write(
    lm: LanguageModel, prompts: Sequence[list[int]], max_tokens: int, temperature: float, rows: range, seed: int
) -> list[list[int]]:
    """What the model writes after each prompt, as ids, without the one that ends it; row by row as in `generate`."""
    stops = lm.tokenizer.ends
    generation = Generation(
        conform(lm.model, Generator, "model"), prepare(lm.model, lm.params, lm.dtype), prompts, max_tokens=max_tokens,
        sampler=Sampling(temperature), key_B=row_keys(seed, rows), stops=stops, vocabulary=lm.tokenizer.vocabulary,
        never=lm.tokenizer.beside - stops - {*lm.tokenizer.marks.values()}, dtype=lm.dtype,
    )  # fmt: skip
    wrote: list[list[int]] = [[] for _ in prompts]
    while not generation.finished:
        for row, new in enumerate(generation.advance()):
            wrote[row] += new
    return wrote


def divergence(
    lm: LanguageModel, other: LanguageModel, prompts: Sequence[list[int]], wrote: Sequence[list[int]], batch: int
) -> list[np.ndarray]:
    """KL(lm || other) in nats, wherever a token of a text was drawn, and its end: float64 [tokens + 1] for each."""
    texts = [[*p, *w] for p, w in zip(prompts, wrote, strict=True)]
    ids_NT = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in enumerate(texts):
        ids_NT[row, : len(text)] = text
    found = []
    for i in range(0, len(texts), batch):
        logs = [_log_softmax(m.logits(ids_NT[i : i + batch])) for m in (lm, other)]
        for row in range(len(logs[0])):
            here, there = (log_NTV[row, len(prompts[i + row]) - 1 : len(texts[i + row])] for log_NTV in logs)
            found.append((np.exp(here) * (here - there)).sum(-1))
    return found


def _log_softmax(score: np.ndarray) -> np.ndarray:
    score = score.astype(np.float64) - score.max(-1, keepdims=True)
    return score - np.log(np.exp(score).sum(-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class PairAccuracy(Report):
    """How often a reward model prefers what was preferred, of held-out pairs, with its 95% interval (Wilson 1927).

    Beside it, how often that was the longer of the two texts as they are shown: what knowing nothing else would reach.
    """

    def __call__(self, finished):
        model = conform(finished.experiment.model, Scorer, "model")
        data: Any = finished.experiment.data

        @jax.jit
        def rewards(params: Any, batch: Any) -> Any:
            texts = apart(batch)
            at = Tokens(texts["position_BT"], texts["segment_BT"])
            score_N: Any = model.apply({"params": params}, texts["tokens_BT"], at, method="reward")
            size_N, real_N = (texts["segment_BT"] >= 0).sum(1), (texts["weight_BT"] > 0).any(1)
            return score_N.reshape(-1, 2), size_N.reshape(-1, 2), real_N.reshape(-1, 2).all(1)

        told = [jax.device_get(rewards(finished.params, dict(b))) for b in data.evaluation(finished.tokenizer)]
        score_PO, size_PO, real_P = map(np.concatenate, zip(*told, strict=True))
        score_PO, size_PO = score_PO[real_P], size_PO[real_P]
        right = float((score_PO[:, 0] > score_PO[:, 1]).mean())
        longer = float(np.where(size_PO[:, 0] == size_PO[:, 1], 0.5, size_PO[:, 0] > size_PO[:, 1]).mean())
        low, high = wilson(right, len(score_PO))
        line = f"{len(score_PO)} held-out pairs: {right:.3f} judged right (95% interval {low:.3f} to {high:.3f}); "
        line += f"the longer of two is preferred in {longer:.3f}"
        return Finding([line], dict(pair_accuracy=right, pair_accuracy_of_length=longer))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of `count` trials."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return centre - half, centre + half


REPORTS = dict(Rewarded=Rewarded, PairAccuracy=PairAccuracy)
