"""Whose replies a reward model prefers: those of a finished run or of another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, NonNegative, Seed, Size, conform
from llm_jax.data.pipeline import SplitName
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Finding, Report
from llm_jax.inference.sampling import Sampling
from llm_jax.models.heads import Scorer
from llm_jax.models.model import Generator
from llm_jax.models.pretrained import Pretrained
from llm_jax.objectives.rewards import ModelReward
from llm_jax.reports.questions import no_room, writing
from llm_jax.reports.statistics import mean_error, ties, wilson
from llm_jax.rl.completions import Completions, Prompt, replies


@dataclasses.dataclass(frozen=True)
class WinRate(Report):
    """On how many held-out prompts the run's reply has a higher reward than that of the run `against`; ties are halves.

    Prompts are conversations without a reply at their end, and those of examples, each once; the first `limit`
    (0: all) that leave room for an answer. Both models reply with the same seed and settings, in `max_tokens` at most.
    The 95% interval tells how much chance there is in the prompts; not how far the judge is from people, whom a model
    trained on that same reward has learnt to please. So the lengths are told too, and the share of replies that did not
    end: the judge reads of them what there is.

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
    temperature: NonNegative = 0.7
    seed: Seed = 0
    batch: Size = 50
    show: Count = 2

    def check(self, planned):
        writing(planned)
        self._asked(planned)

    def _asked(self, finished: Finished) -> tuple[list[Prompt], int]:
        """`_prompts` in the context of every model that reads a reply."""
        other = conform(self.against.model, Generator, "report.against.model")
        own = conform(finished.experiment.model, Generator, "model")
        judge = conform(self.judge.model, Scorer, f"the model of {self.judge.run}")
        return self._prompts(finished, min(m.limit() or 10**9 for m in (own, other, judge)))

    def __call__(self, finished):
        experiment: Any = finished.experiment
        self.judge.params(finished.frozen)  # before its model is asked for: it says what is wrong
        other = conform(self.against.model, Generator, "report.against.model")
        prompts, left_out = self._asked(finished)
        reward = ModelReward(self.judge).ready(finished.tokenizer, experiment.data.rendering, finished.frozen)
        theirs = self.against.params(finished.frozen)
        rival = dataclasses.replace(finished, experiment=experiment.override({"model": other}), params=theirs)
        sampler = Sampling(self.temperature)
        made = [
            replies(run.lm, prompts, max_tokens=self.max_tokens, sampler=sampler, seed=self.seed, batch=self.batch)
            for run in (finished, rival)
        ]
        found = self._finding(prompts, made, [each.scored(reward) for each in made])
        if left_out:
            found.lines.insert(2, no_room(left_out, len(prompts) + left_out, self.max_tokens))
            found.metrics[f"{self.split}_left_out"] = left_out
        return found

    def _prompts(self, finished: Finished, context: int) -> tuple[list[Prompt], int]:
        """Those that are replied to, each once, and how many of those before the last leave no room for a reply."""
        data = finished.experiment.data
        most = context - self.max_tokens - 1
        prompts, left_out = Prompt.among(
            finished.documents(self.split), finished.tokenizer, data.rendering, most, self.limit or None, once=True
        )
        if not prompts:
            raise InputError(
                f"WinRate needs prompts that leave room for an answer of max_tokens={self.max_tokens} in a context of "
                f"{context}, and the {self.split} documents have none"
            )
        return prompts, left_out

    def _finding(
        self, prompts: Sequence[Prompt], made: Sequence[Completions], rewards: Sequence[np.ndarray]
    ) -> Finding:  # fmt: skip
        ours_N, theirs_N = rewards
        same = [mine == his for mine, his in zip(*(each.texts for each in made), strict=True)]
        count, gain_N = len(prompts), np.where(same, 0, ours_N - theirs_N)  # the same reply is a tie, to the last bit
        wins = float((gain_N > 0).sum() + (gain_N == 0).sum() / 2)
        low, high = wilson(wins, count)
        error = mean_error(gain_N)
        around = "one prompt has no interval" if error is None else f"95%: ±{error:.3f}"
        lengths = [float(each.sizes().mean()) for each in made]
        cut = [each.truncated() for each in made]
        lines = [
            f"{self.split}: {self.judge.run} prefers this run to {self.against.run} in {wins:g} of {count} prompts: "
            f"win rate {wins / count:.3f} (95%: {low:.3f} to {high:.3f})",
            f"  mean reward {ours_N.mean():.3f} and {theirs_N.mean():.3f}, difference {gain_N.mean():.3f} "
            f"({around}); mean length {lengths[0]:.1f} and {lengths[1]:.1f} tokens, "
            f"{cut[0]:.1%} and {cut[1]:.1%} cut off",
        ]
        if equal := ties(gain_N):
            lines.append(f"  in {equal:.1%} of the prompts both have the same reward, which counts as half a win")
        texts = [each.texts for each in made]
        for prompt, own, other, mine, his in list(zip(prompts, *texts, *rewards, strict=True))[: self.show]:
            lines += ["", f"  prompt   {prompt.text}"]
            lines += [f"  this     {own.strip()}  ({mine:.2f})", f"  against  {other.strip()}  ({his:.2f})"]
        metrics = {"win_rate": wins / count, "win_rate_low": low, "win_rate_high": high, "reward": float(ours_N.mean())}
        return Finding(
            lines, metrics | {"reward_gain": float(gain_N.mean()), "truncated": cut[0], "reward_ties": equal}
        )


REPORTS = dict(WinRate=WinRate)
