"""Whose replies a reward model prefers: those of a finished run or of another one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.core.parts import Count, Size, conform
from llm_jax.core.tables import InputError
from llm_jax.data.documents import Conversation, Example
from llm_jax.data.pipeline import SplitName
from llm_jax.inference.generate import Generation, prepare, round_up, row_keys
from llm_jax.inference.sampling import Sampling
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.heads import Scorer
from llm_jax.models.model import Generator
from llm_jax.models.pretrained import Pretrained
from llm_jax.text.special import frame
from llm_jax.training.finished import Finished
from llm_jax.training.intervals import NORMAL_95, wilson
from llm_jax.training.report import Finding, Report


@dataclasses.dataclass(frozen=True)
class WinRate(Report):
    """On how many held-out prompts the run's reply has a higher reward than that of the run `against`; ties are halves.

    Prompts are what comes before the last answer of conversations, and those of examples, each once; the first `limit`
    (0: all) that leave room for an answer. Both models reply with the same seed and settings, in `max_tokens` at most.
    The 95% interval tells how much chance there is in the prompts; not how far the judge is from people, whom a model
    trained on that same reward has learnt to please. So the lengths are told too.

    Attributes:
      judge: the run of a Scorer, which reads prompt and reply.
      against: the run of a generator.
      show: so many prompts are shown with both replies.

    Raises:
      InputError: there are no prompts, or a run is not what it should be.
    """

    judge: Pretrained
    against: Pretrained
    split: SplitName = "validation"
    limit: Count = 200
    max_tokens: Size = 48
    temperature: float = 0.7
    seed: int = 0
    batch: Size = 50
    show: Count = 2

    def __call__(self, finished):
        experiment: Any = finished.experiment
        cast = experiment.precision.cast
        params = {name: cast(_params(part, finished)) for name, part in vars(self).items() if name in RUNS}
        scorer = conform(self.judge.model, Scorer, "report.judge.model")
        other = conform(self.against.model, Generator, "report.against.model")
        own: Any = conform(experiment.model, Generator, "model")
        prompts = self._prompts(finished, min(m.limit() or 10**9 for m in (own, other, scorer)))
        replies = [
            self._replies(finished, model, weights, prompts)
            for model, weights in ((own, cast(finished.params)), (other, params["against"]))
        ]
        rewards = [self._rewards(scorer, params["judge"], prompts, reply) for reply in replies]
        return self._finding(finished, prompts, replies, rewards)

    def _prompts(self, finished: Finished, context: int) -> list[tuple[list[int], int]]:
        """Token ids, and the token that a reply ends with."""
        tokenizer, rendering = finished.tokenizer, _rendering(finished)
        begin, turn = frame(tokenizer.special, "bos", rendering.bos), tokenizer.special.get("end_of_turn")
        eos = tokenizer.special.get("eos")
        found: dict[tuple[int, ...], int | None] = {}
        for document in finished.documents(self.split):
            if isinstance(document, Conversation):
                last = max((i for i, m in enumerate(document.messages) if m.role == "assistant"), default=0)
                if last:
                    ids = rendering.template.render(tokenizer, document.messages[:last], reply=True)[0]
                    found.setdefault(tuple(ids), turn)
            elif isinstance(document, Example):
                found.setdefault((*begin, *tokenizer.encode(document.prompt)), eos)
            if self.limit and len(found) == self.limit:
                break
        fitting = [(list(ids), end) for ids, end in found.items() if 0 < len(ids) <= context - self.max_tokens]
        if not fitting:
            raise InputError(
                f"WinRate needs prompts that leave room for an answer of max_tokens={self.max_tokens} in a context of "
                f"{context}, and the {self.split} documents have none"
            )
        return [(ids, -1 if end is None else end) for ids, end in fitting]

    def _replies(
        self, finished: Finished, model: Generator, params: Any, prompts: Sequence[tuple[list[int], int]]
    ) -> list[list[int]]:
        """The tokens of each reply, and of its end where it came to one."""
        tokenizer, experiment = finished.tokenizer, finished.experiment
        dtype: Any = experiment.precision
        ready, replies = prepare(model, params, dtype.dtype), []
        for first in range(0, len(prompts), self.batch):
            batch = prompts[first : first + self.batch]
            generation = Generation(
                model, ready, [ids for ids, _ in batch], max_tokens=self.max_tokens,
                sampler=Sampling(self.temperature), key_B=row_keys(self.seed, range(first, first + len(batch))),
                stops=tokenizer.ends, never=tokenizer.beside - tokenizer.ends - {*tokenizer.marks.values()},
                vocabulary=tokenizer.vocabulary, dtype=dtype.dtype,
            )  # fmt: skip
            said: list[list[int]] = [[] for _ in batch]
            while not generation.finished:
                for reply, new in zip(said, generation.advance(), strict=True):
                    reply += new
            ends = (
                [end] if len(reply) < self.max_tokens and end >= 0 else []
                for reply, (_, end) in zip(said, batch, strict=True)
            )
            replies += [[*reply, *end] for reply, end in zip(said, ends, strict=True)]
        return replies

    def _rewards(
        self, scorer: Scorer, params: Any, prompts: Sequence[tuple[list[int], int]], replies: Sequence[list[int]]
    ) -> np.ndarray:
        texts = [[*ids, *reply] for (ids, _), reply in zip(prompts, replies, strict=True)]
        length = min(round_up(max(map(len, texts)), finely=True), scorer.limit() or 10**9)
        rewards = []
        for first in range(0, len(texts), self.batch):
            tokens_BT = np.zeros((self.batch, length), np.int32)
            segment_BT = np.full((self.batch, length), PADDING, np.int32)
            batch = texts[first : first + self.batch]
            for row, ids in enumerate(batch):
                tokens_BT[row, : len(ids)], segment_BT[row, : len(ids)] = ids, 0
            rewards.append(np.asarray(_reward(scorer, params, tokens_BT, segment_BT))[: len(batch)])
        return np.concatenate(rewards).astype(np.float64)

    def _finding(
        self, finished: Finished, prompts: Sequence[tuple[list[int], int]], replies: list[list[list[int]]],
        rewards: list[np.ndarray],
    ) -> Finding:  # fmt: skip
        ours_N, theirs_N = rewards
        count, gain_N = len(prompts), ours_N - theirs_N
        wins = float((gain_N > 0).sum() + (gain_N == 0).sum() / 2)
        low, high = wilson(wins, count)
        error = float(gain_N.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
        lengths = [float(np.mean([*map(len, said)])) for said in replies]
        lines = [
            f"{self.split}: {self.judge.run} prefers this run to {self.against.run} in {wins:g} of {count} prompts: "
            f"win rate {wins / count:.3f} (95%: {low:.3f} to {high:.3f})",
            f"  mean reward {ours_N.mean():.3f} and {theirs_N.mean():.3f}, difference {gain_N.mean():.3f} "
            f"(95%: ±{NORMAL_95 * error:.3f}); mean length {lengths[0]:.1f} and {lengths[1]:.1f} tokens",
        ]
        decode = finished.tokenizer.decode
        for (ids, _), own, other, mine, his in list(zip(prompts, *replies, *rewards, strict=True))[: self.show]:
            lines += ["", f"  prompt   {decode(ids).strip()}"]
            lines += [
                f"  this     {decode(own).strip()}  ({mine:.2f})",
                f"  against  {decode(other).strip()}  ({his:.2f})",
            ]
        metrics = {"win_rate": wins / count, "win_rate_low": low, "win_rate_high": high, "reward": float(ours_N.mean())}
        return Finding(lines, metrics | {"reward_gain": float(gain_N.mean())})


RUNS = ("judge", "against")


def _rendering(finished: Finished) -> Any:
    data: Any = finished.experiment.data
    return data.rendering


def _params(part: Pretrained, finished: Finished) -> Any:
    if part.run not in (finished.frozen or {}).get("pretrained", {}):
        raise InputError(f"this run does not keep the parameters of {part.run}: it was trained without this report")
    return part.params(finished.frozen)


@functools.partial(jax.jit, static_argnums=0)
def _reward(scorer: Scorer, params: Any, tokens_BT: jax.Array, segment_BT: jax.Array) -> Any:
    at = Tokens(Tokens.of(tokens_BT.shape).position_BT, segment_BT)
    return scorer.apply({"params": params}, tokens_BT, at, method="reward")


REPORTS = dict(WinRate=WinRate)
