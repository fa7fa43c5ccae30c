"""Completions by the model in training, with what is known of them: for rollouts, and of held-out prompts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from llm_jax.core.arrays import HostBatch
from llm_jax.core.parts import conform
from llm_jax.core.seeds import random_key
from llm_jax.data.loader import interleaved
from llm_jax.data.pipeline import SplitName
from llm_jax.engine.step import Program
from llm_jax.inference.sampling import Sampler
from llm_jax.models.model import Generator
from llm_jax.objectives.objective import Objective
from llm_jax.objectives.policy import PolicyGradient
from llm_jax.parallel.layout import place
from llm_jax.rl.completions import Completions, Prompt, write
from llm_jax.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llm_jax.rl.rollouts import Rollouts

RECALLED = ("old_BT", "reference_BT", "value_BT")


@dataclasses.dataclass(frozen=True)
class _Recall(Objective):
    """No loss: what a policy gradient remembers of a batch, so that a program may be asked for it."""

    policy: PolicyGradient

    def __call__(self, model, params, frozen, batch, key):
        return self.policy.recall(model, params, frozen, batch)


class Author:
    """Writes completions with the model of a program, and looks up what is known of them."""

    def __init__(self, data: Rollouts, program: Program, tokenizer: Tokenizer):
        experiment = program.experiment
        self.data, self.program, self.tokenizer = data, program, tokenizer
        self.policy = conform(experiment.objective, PolicyGradient, "objective")
        self.model = conform(experiment.model, Generator, "model")
        asked = dataclasses.replace(experiment, objective=_Recall(self.policy))
        self._recall = dataclasses.replace(program, experiment=asked).measure

    def write(
        self, params: Any, frozen: Any, prompts: Sequence[Prompt], sampler: Sampler, key_B: jax.Array,
        logps_at: float | None = None,
    ) -> Completions:  # fmt: skip
        precision = self.program.experiment.precision
        return write(
            self.model, self.program.whole(params, frozen), self.tokenizer, prompts, sampler=sampler, key_B=key_B,
            max_tokens=self.data.max_tokens, dtype=precision.compute, logps_at=logps_at,
        )  # fmt: skip

    def known(self, params: Any, frozen: Any, completions: Completions) -> HostBatch:
        """Rows with their rewards, and what the model says of them now."""
        bytes_V = np.asarray(self.tokenizer.bytes_V, np.int32)
        laid = completions.laid(self.data.length, self.tokenizer.padding, bytes_V, self.policy.reads_end())
        recalled = []
        for first in range(0, len(completions.ids), self.data.batch):
            part = {name: array[first : first + self.data.batch] for name, array in laid.items()}
            recalled.append(jax.device_get(self._recall(params, frozen, place(part, self.program.mesh))))
        laid |= {name: np.concatenate([part[name] for part in recalled]) for name in RECALLED}
        ready = [reward.ready(self.tokenizer, self.data.rendering, frozen) for reward in self.data.judges]
        return laid | self.data.judged(completions, ready)


@dataclasses.dataclass
class HeldOut:
    """`held_out(program, params, frozen)`: batches of completions of held-out prompts, by these parameters.

    Attributes:
      samples: what was completed last: prompt, completion and reward, of the first few.
    """

    data: Rollouts
    tokenizer: Tokenizer
    split: SplitName
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _author: Author | None = None

    @functools.cached_property
    def _parts(self) -> tuple[list[list[Prompt]], float]:
        return self.data.prompts(self.split, self.tokenizer)

    @functools.cached_property
    def prompts(self) -> list[Prompt]:
        parts, _ = self._parts
        found = [parts[part][number] for part, number in zip(*interleaved(list(map(len, parts))), strict=True)]
        limit = self.data.evaluation_batches
        return found if limit is None else found[: limit * self.data.batch]

    def __len__(self) -> int:
        return -(-len(self.prompts) // self.data.batch)

    def __call__(self, program: Program, params: Any, frozen: Any) -> Iterator[HostBatch]:
        if self._author is None or self._author.program is not program:
            self._author = Author(self.data, program, self.tokenizer)
        author, rows, self.samples = self._author, self.data.batch, []
        for number in range(len(self)):
            prompts = self.prompts[number * rows : (number + 1) * rows]
            filled = [*prompts, *prompts[:1] * (rows - len(prompts))]
            completions = author.write(params, frozen, filled, self.data.answers, keys(0, number, rows))
            known = author.known(params, frozen, completions)
            for row, prompt in enumerate(prompts[: max(0, self.data.shown - len(self.samples))]):
                said = dict(prompt=prompt.text, completion=completions.texts[row])
                self.samples.append(said | dict(reward=float(known["reward_B"][row])))
            known["weight_BT"][len(prompts) :] = 0
            known["prompts_left_out_B"] = np.full(rows, self._parts[1])
            yield {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in known.items()}


def keys(seed: int, number: int, rows: int) -> jax.Array:
    """A key for each row of a rollout."""
    key = jax.random.fold_in(random_key(seed), number)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(rows, dtype=np.uint32))
