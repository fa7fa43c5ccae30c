"""What preferences made of a model: the reward of what it writes, its distance from where it began; a judge's skill."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from types import FunctionType
from typing import Any, cast

import jax
import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, NonNegative, Seed, Size, conform
from llm_jax.engine.trained import Finished, language_model
from llm_jax.experiment import Finding, Report
from llm_jax.inference.language_model import LanguageModel
from llm_jax.inference.sampling import Sampling
from llm_jax.layers.moe import without_drops
from llm_jax.layers.tokens import Tokens
from llm_jax.models.heads import Scorer
from llm_jax.objectives.preferences import apart
from llm_jax.objectives.rewards import Reward, as_reward
from llm_jax.reports.questions import no_room, writing
from llm_jax.reports.statistics import independent_pairs, mean_error, ties, wilson
from llm_jax.rl.completions import Completions, Prompt, replies
from llm_jax.rl.rollouts import Rollouts


@dataclasses.dataclass(frozen=True)
class Rewarded(Report):
    """How good replies to held-out prompts are, sampled from the model and, if it has one, from its reference.

    The gain is the mean difference by prompt, with its 95% interval; `reward_ties` is the share of prompts for which
    both have the same reward. `kl` (nats a token) and `kl_per_reply` are KL(model || reference) of the distributions
    that replies are drawn from: at the `temperature`, among the tokens that a model may write, at each token of the
    model's replies. At temperature 0 nothing is drawn, and there is no KL. Prompts are the first `limit` that leave
    room for `max_tokens`; `validation_left_out` counts those before the last of them that leave none. `truncated` is
    the share of replies that did not end: they are rewarded as they stand.

    Attributes:
      temperature: None: that of the data's `Rollouts`, by which the model was trained; 1 for other data.

    Raises:
      InputError: the held-out documents have none.
    """

    reward: Reward | FunctionType
    limit: Size = 200
    max_tokens: Size = 64
    temperature: NonNegative | None = None
    batch: Size = 50
    seed: Seed = 0
    show: Count = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "reward", as_reward(cast(Any, self).reward))

    def check(self, planned):
        writing(planned)
        reward = cast(Any, self).reward
        reward.check()
        reward.check_prompts([prompt.document for prompt in self._prompts(planned)[0]])

    def _prompts(self, finished: Finished) -> tuple[list[Prompt], int]:
        """Those that are replied to, and how many of those before the last leave no room for a reply."""
        most = (finished.lm.context or math.inf) - self.max_tokens - 1  # a judge also reads what ends a turn
        prompts, left_out = Prompt.among(
            finished.documents("validation"), finished.tokenizer, finished.rendering, most, self.limit
        )
        if not prompts:
            raise InputError(
                "Rewarded needs held-out conversations, preferences or examples whose prompts leave room for "
                f"max_tokens={self.max_tokens}: " + (f"none of {left_out} does" if left_out else "there are none")
            )
        return prompts, left_out

    def __call__(self, finished):
        rendering, lm = finished.rendering, writing(finished)
        prompts, left_out = self._prompts(finished)
        reward = cast(Any, self).reward.ready(finished.tokenizer, rendering, finished.frozen)
        sampler = Sampling(self._temperature(finished))
        here, score_N = self._sampled(lm, prompts, sampler, reward)
        found = dict(reward=score_N.mean(), reply_tokens=here.sizes().mean(), truncated=here.truncated())
        lines = [f"{len(prompts)} held-out prompts: {_told(here, score_N)}"]
        if left_out:
            found |= dict(validation_left_out=left_out)
            lines.append(no_room(left_out, len(prompts) + left_out, self.max_tokens))
        shown = [prompts, here.texts]
        if finished.frozen and "reference" in finished.frozen:
            reference = language_model(finished.experiment, finished.tokenizer, finished.frozen["reference"])
            there, score_there_N = self._sampled(reference, prompts, sampler, reward)
            gain_N = score_N - score_there_N
            found |= dict(reward_gain=gain_N.mean(), reference_reward=score_there_N.mean(), reward_ties=ties(gain_N))
            around = "(one prompt has no interval)"
            if (error := mean_error(gain_N)) is not None:
                found |= dict(reward_gain_low=gain_N.mean() - error, reward_gain_high=gain_N.mean() + error)
                around = f"+- {error:.3f}"
            lines.append(f"  its reference: {_told(there, score_there_N)}, so a gain of {gain_N.mean():.3f} {around}")
            if sampler.temperature:
                kl = divergence(lm, reference, here, self.batch, sampler.temperature)
                per_token, per_reply = np.concatenate(kl).mean(), np.mean([kl_T.sum() for kl_T in kl])
                found |= dict(kl=per_token, kl_per_reply=per_reply)
                lines.append(f"  KL to the reference {per_token:.4f} nats a token, {per_reply:.3f} a reply")
            else:
                lines.append("  no KL to the reference: at temperature 0 replies are not drawn")
            if found["reward_ties"]:
                lines.append(f"  in {found['reward_ties']:.1%} of the prompts both have the same reward")
            shown.append(there.texts)
        for about, *texts in list(zip(*shown, strict=True))[: self.show]:
            names = ("prompt", "model", "reference")
            lines += ["", *(f"  {name:9}  {said}" for name, said in zip(names, (about.text, *texts), strict=False))]
        return Finding(lines, {name: float(value) for name, value in found.items()})

    def _temperature(self, finished: Finished) -> float:
        data = finished.experiment.data
        given = data.temperature if isinstance(data, Rollouts) else 1.0
        return given if self.temperature is None else self.temperature

    def _sampled(
        self, lm: LanguageModel, prompts: Sequence[Prompt], sampler: Sampling, reward: Reward
    ) -> tuple[Completions, np.ndarray]:  # fmt: skip
        """Replies, and the score of each."""
        made = replies(
            lm, prompts, max_tokens=self.max_tokens, sampler=sampler, seed=self.seed, batch=self.batch
        )  # fmt: skip
        return made, made.scored(reward)


def _told(made: Completions, score_N: np.ndarray) -> str:
    told = f"reward {score_N.mean():.3f}, {made.sizes().mean():.1f} tokens a reply"
    return f"{told}, {made.truncated():.1%} cut off"


def divergence(
    lm: LanguageModel, other: LanguageModel, made: Completions, batch: int, temperature: float
) -> list[np.ndarray]:
    """KL(lm || other) in nats, wherever a token of a completion was drawn: float64 [tokens] for each.

    It is that of the distributions drawn from: at the temperature, among the tokens that a model may write, without the
    drops of experts that have no room in training.
    """
    models = [_as_it_writes(m) for m in (lm, other)]
    written = sorted({*range(lm.tokenizer.vocabulary)} - lm.tokenizer.unsaid)
    texts = [[*prompt.ids, *ids] for prompt, ids in zip(made.prompts, made.ids, strict=True)]
    ids_NT = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in enumerate(texts):
        ids_NT[row, : len(text)] = text
    found = []
    for i in range(0, len(texts), batch):
        logs = [_log_softmax(m.logits(ids_NT[i : i + batch])[..., written] / temperature) for m in models]
        for row in range(len(logs[0])):
            drawn = slice(len(made.prompts[i + row].ids) - 1, len(texts[i + row]) - 1)
            here, there = (log_NTV[row, drawn] for log_NTV in logs)
            found.append((np.exp(here) * (here - there)).sum(-1))
    return found


def _as_it_writes(lm: LanguageModel) -> LanguageModel:
    model = without_drops(lm.model)
    return lm if model == lm.model else LanguageModel(model, lm.params, lm.tokenizer, dtype=lm.dtype)


def _log_softmax(score: np.ndarray) -> np.ndarray:
    score = score.astype(np.float64) - score.max(-1, keepdims=True)
    return score - np.log(np.exp(score).sum(-1, keepdims=True))


@dataclasses.dataclass(frozen=True)
class PairAccuracy(Report):
    """How often a reward model prefers what was preferred, of held-out pairs, with its 95% interval (Wilson 1927).

    Beside it, how often that was the longer of the two texts as they are shown, which knowing nothing else would reach;
    and the difference (`ahead_of_length`) with its 95% interval. Intervals go by how many independent pairs would tell
    as much: fewer than there are, where a text is in several.
    """

    def check(self, planned):
        conform(planned.experiment.model, Scorer, "model")
        if "margin_B" not in planned.experiment.data.blank(1):
            raise InputError(
                "PairAccuracy needs pairs to compare: set data.presentation=Pairs() and data.packing=One()"
            )

    def __call__(self, finished):
        self.check(finished)
        model = conform(finished.experiment.model, Scorer, "model")
        data = finished.experiment.data

        @jax.jit
        def rewards(params: Any, batch: Any) -> Any:
            texts = apart(batch)
            at = Tokens(texts["position_BT"], texts["segment_BT"])
            score_N: Any = model.apply({"params": params}, texts["tokens_BT"], at, method="reward")
            size_N, real_N = (texts["segment_BT"] >= 0).sum(1), (texts["weight_BT"] > 0).any(1)
            return score_N.reshape(-1, 2), size_N.reshape(-1, 2), real_N.reshape(-1, 2).all(1)

        told, text_N = [], []
        for batch in data.evaluation(finished.tokenizer):
            told.append(jax.device_get(rewards(finished.params, dict(batch))))
            text_N += [text.tobytes() for text in batch["tokens_BT"].reshape(-1, data.length)]
        score_PO, size_PO, real_P = map(np.concatenate, zip(*told, strict=True))
        number = {text: i for i, text in enumerate(dict.fromkeys(text_N))}
        text_PO = np.array([number[text] for text in text_N]).reshape(-1, 2)
        if not real_P.any():
            raise InputError("PairAccuracy: the held-out rows hold no pairs")
        return judged(score_PO[real_P], size_PO[real_P], text_PO[real_P])


def judged(score_PO: np.ndarray, size_PO: np.ndarray, text_PO: np.ndarray) -> Finding:
    """What there is to say of pairs, the preferred first: their scores, sizes in tokens, and which texts they are."""
    right_P = (score_PO[:, 0] > score_PO[:, 1]).astype(np.float64)
    longer_P = np.where(size_PO[:, 0] == size_PO[:, 1], 0.5, size_PO[:, 0] > size_PO[:, 1])
    right, longer, equal = float(right_P.mean()), float(longer_P.mean()), ties(score_PO[:, 0] - score_PO[:, 1])
    count = independent_pairs(right_P, text_PO)
    low, high = wilson(right * count, count)
    found = dict(pair_accuracy=right, pair_accuracy_of_length=longer, pair_ties=equal, ahead_of_length=right - longer)
    lines = [
        f"{len(right_P)} held-out pairs: {right:.3f} judged right (95% interval {low:.3f} to {high:.3f}); "
        f"the longer of two is preferred in {longer:.3f}"
    ]
    ahead_P = right_P - longer_P
    if (error := mean_error(ahead_P, independent_pairs(ahead_P, text_PO))) is not None:
        around = (right - longer - error, right - longer + error)
        found |= dict(zip(("ahead_of_length_low", "ahead_of_length_high"), around, strict=True))
        lines.append(f"  ahead of length by {right - longer:.3f} (95% interval {around[0]:.3f} to {around[1]:.3f})")
    if equal:
        lines.append(f"  {equal:.1%} have two equal scores, which is not judged right")
    return Finding(lines, found)


REPORTS = dict(Rewarded=Rewarded, PairAccuracy=PairAccuracy)
