"""Data that the model in training makes itself: completions of prompts, with what they are worth."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any, cast

import jax
import numpy as np
from absl import logging

from llm_jax.core.arrays import HostBatch
from llm_jax.core.errors import InputError
from llm_jax.core.files import digest
from llm_jax.core.parts import Count, Number, Positive, Size, show
from llm_jax.core.serialization import to_json
from llm_jax.data.loader import Mixed, permuted
from llm_jax.data.pipeline import Data, SplitName
from llm_jax.data.presentation import blank
from llm_jax.engine.step import Program
from llm_jax.inference.sampling import Sampler, Sampling
from llm_jax.objectives.policy import Rollout
from llm_jax.objectives.rewards import ExactAnswer, Reward, as_reward
from llm_jax.rl.author import RECALLED, Author, HeldOut, keys
from llm_jax.rl.completions import Completions, Prompt
from llm_jax.text.tokenizer import Tokenizer

CREDITED = ("advantage_BT", "return_BT")
SPREAD = ("reward_spread_B", "reward_zero_std_B")  # of groups of two completions or more
SAMPLING = ("sampling_logp_difference_B", "sampling_logp_difference_max_B")
LEFT_OUT = "prompts_left_out_B"  # the share of the prompts


@dataclasses.dataclass(frozen=True)
class Rollouts(Data):
    """Completions that the model writes to the prompts of documents, and the rewards that they get.

    A rollout is `batches` batches of completions, `group` to each prompt, by the weights of that moment; it is trained
    on `updates` times over, in another order each time. Prompts are of examples, or conversations, which the model is
    to end with a reply (one that is there already is left out); those that leave no room for `max_tokens` in `length`
    are left out. Of a mixture, groups are in proportion to its weights. The reward is the sum of `rewards`, parts or
    plain functions `f(prompts, completions, examples)`, by their `weights` (none: 1 each). A reward may ask for fields
    of the prompts' records too, for how many tokens a completion has, and for whether it ended (`Reward`).

    `unended` is the reward of a completion that did not end in `max_tokens`, whatever `rewards` say of it (None: what
    they say). A reward model reads a text that was cut off as far as it goes, without an end. It has not learnt what
    such a text is worth, so a policy may learn never to end one.

    Completions are drawn at `temperature`, from all tokens that a model may write: a sampler that left some out would
    not draw from the policy whose probabilities are trained. Held-out prompts get one completion each by the `answers`
    sampler; the first `shown` of them are written down at each evaluation.

    A batch is that of `Data` with what a policy gradient asks of targets (`old_BT`, `reference_BT`, `value_BT`,
    `advantage_BT`, `return_BT`) and of rows (`reward_B`, `ended_B`, `kl_coefficient_B`; of groups of two or more the
    deviation of their rewards, `reward_spread_B`, and 1 where that is none, `reward_zero_std_B`). In every row is also
    how far the log-probabilities of the rollout's tokens are from each other as they were drawn and as the training
    reads them (`sampling_logp_difference_B`, the mean, and `sampling_logp_difference_max_B`): with 32 bits that is
    rounding; more of it says that the policy that is trained is not the one that wrote. So is the share of the prompts
    that leave no room (`prompts_left_out_B`).
    """

    rewards: tuple[Reward | FunctionType, ...] = (ExactAnswer(),)
    weights: tuple[Number, ...] = ()
    group: Size = 8
    batches: Size = 1
    updates: Size = 1
    max_tokens: Size = 16
    temperature: Positive = 1.0
    answers: Sampler = Sampling(temperature=0.0)
    shown: Count = 3
    unended: Number | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rewards", tuple(map(as_reward, self.rewards)))

    @property
    def judges(self) -> tuple[Reward, ...]:
        """The rewards, none of which is a bare function any more."""
        return cast(tuple[Reward, ...], self.rewards)

    def train(self, tokenizer, *, seed, process=0, processes=1, program=None) -> Any:
        """Endless batches of completions by the model of `program`.

        Raises:
          InputError: there is no prompt with room for an answer, the numbers of completions or of rewards do not fit,
            the training has several processes, or a setting of `Data` is not the default and would change nothing.
        """
        if processes > 1:
            raise InputError(f"rollouts are made in one process, not {processes}: use more devices of one host")
        if program is None:
            raise InputError("rollouts are made by the model in training: there is none here")
        if not self.rewards or len(self.weights) not in (0, len(self.rewards)):
            raise InputError(
                f"there are {len(self.rewards)} data.rewards, {len(self.weights)} data.weights: give one each"
            )
        if self.batch * self.batches % self.group:
            raise InputError(
                f"a rollout of data.batch={self.batch} x data.batches={self.batches} completions is no whole number of "
                f"groups of data.group={self.group}"
            )
        self._check_settings("train")
        return RolloutIterator(self, program, tokenizer, seed)

    def evaluation(self, tokenizer, *, split="validation", process=0, processes=1) -> Any:
        self._check_settings(split)
        held_out = HeldOut(self, tokenizer, split)
        self.check_room([held_out.prompts], tokenizer)
        return held_out

    def blank(self, rows):
        batch = blank(rows, self.length)
        del batch["number_B"]
        batch |= {name: np.zeros((rows, self.length), np.float32) for name in RECALLED + CREDITED}
        of_rows = ("ended_B", "kl_coefficient_B", LEFT_OUT, "reward_B", *SAMPLING, *self.reward_names())
        of_rows += SPREAD if self.group > 1 else ()
        return batch | {name: np.zeros(rows, np.float32) for name in of_rows}

    def prompts(self, split: SplitName, tokenizer: Tokenizer) -> tuple[list[list[Prompt]], float]:
        """Those of the split that leave room for an answer, by component of the mixture; and the share that does not.

        Raises:
          InputError: none does, or none of a component that is to be trained on.
        """
        self.documents(split)
        parts = [
            [Prompt.of(document, tokenizer, self.rendering) for document in part[split]]
            for part in self._split_documents
        ]
        most = self.length - self.max_tokens
        fitting = [[prompt for prompt in part if 0 < len(prompt.ids) <= most] for part in parts]
        for (source, _), found, left in zip(self.source.components(), parts, fitting, strict=True):
            if not left and (split == "train" or not any(fitting)):
                shortest = min((len(prompt.ids) for prompt in found), default=0)
                raise InputError(
                    f"of {len(found)} {split} prompts of {source} none leaves room for data.max_tokens="
                    f"{self.max_tokens} in data.length={self.length}: the shortest has {shortest} tokens"
                )
            if len(left) < len(found):
                logging.warning(
                    "%d of %d %s prompts of %s are left out: they have no token, or leave no room for "
                    "data.max_tokens=%d in data.length=%d (the longest has %d tokens)",
                    len(found) - len(left), len(found), split, source, self.max_tokens, self.length,
                    max(len(prompt.ids) for prompt in found),
                )  # fmt: skip
        count, left = (sum(map(len, lists)) for lists in (parts, fitting))
        return fitting, 1 - left / count

    def check_room(self, prompts: Sequence[Sequence[Prompt]], tokenizer: Tokenizer) -> None:
        """Checks that the rewards can read completions of all prompts, however long they become.

        Raises:
          InputError: one cannot.
        """
        longest = max((prompt for part in prompts for prompt in part), key=lambda prompt: len(prompt.ids))
        for reward in self.judges:
            tokens = len(longest.ids) + self.max_tokens
            reward.check_room(longest.document, tokens, tokenizer, self.rendering)

    def _check_settings(self, split: SplitName) -> None:
        for field in dataclasses.fields(Data):
            said = getattr(self, field.name)
            if field.name in ("packing", "presentation", "workers") and said != field.default:
                raise InputError(
                    f"the model itself writes rollouts, a completion a row: leave data.{field.name} at "
                    f"{show(field.default, whole=True)}, not {show(said, whole=True)}"
                )
        documents = self.documents(split)
        for reward in self.judges:
            reward.check()
            reward.check_prompts(documents)

    def reward_names(self) -> list[str]:
        """What each reward is called in a batch, where there are several."""
        kinds = [reward.called() for reward in self.judges]
        return [f"reward_{kind}_{i}_B" for i, kind in enumerate(kinds)] if len(kinds) > 1 else []

    def judged(self, completions: Completions, ready: Sequence[Reward]) -> HostBatch:
        """The rewards of each row, in float64."""
        each = [completions.scored(reward) for reward in ready]
        weights = self.weights or (1.0,) * len(each)
        total_B = sum((w * score_B for w, score_B in zip(weights, each, strict=True)), np.zeros(len(completions.ids)))
        if self.unended is not None:
            total_B = np.where(completions.ended_B, total_B, self.unended)
        return dict(zip(self.reward_names(), each, strict=False)) | dict(reward_B=total_B)


class RolloutIterator(Iterator[HostBatch]):
    """Endless batches. Its state is how many were seen, and the rollout that is not used up: its weights are gone."""

    def __init__(self, data: Rollouts, program: Program, tokenizer: Tokenizer, seed: int):
        self._data, self._program, self._seed = data, program, seed
        self._author = Author(data, program, tokenizer)
        self._prompts, self._left_out = data.prompts("train", tokenizer)
        data.check_room(self._prompts, tokenizer)
        self._seen = 0
        self._coefficient = self._author.policy.first_coefficient()
        self._rollout: HostBatch | None = None
        self._mixed = Mixed([weight for _, weight in data.source.components()])
        free = dataclasses.replace(data, evaluation_batches=None, shown=0, answers=Sampling())
        ids = [prompt.ids for part in self._prompts for prompt in part]
        sizes = [json.dumps([len(part) for part in self._prompts])] if len(self._prompts) > 1 else []
        self._stream = digest(json.dumps(to_json(free)), tokenizer.identity, str(seed), json.dumps(ids), *sizes)

    @property
    def _each(self) -> int:
        """Batches that are made of one rollout."""
        return self._data.batches * self._data.updates

    def next(self, state: Any, waiting: AbstractContextManager[None] = contextlib.nullcontext()) -> HostBatch:
        """The next batch; where a rollout is used up, the model of `state` makes another."""
        number, place = divmod(self._seen, self._each)
        if self._rollout is None:
            with waiting:  # until all of it is there, nothing changes here
                made = self._make(number, state)
            self._rollout, self._coefficient = made
        update, part = divmod(place, self._data.batches)
        order = np.random.default_rng((self._seed, number, update)).permutation(len(self._rollout["reward_B"]))
        chosen = order[part * self._data.batch : (part + 1) * self._data.batch]
        batch = {name: array[chosen] for name, array in self._rollout.items()}
        batch[LEFT_OUT] = np.full(len(chosen), self._left_out, np.float32)
        self._seen += 1
        if self._seen % self._each == 0:
            self._rollout = None
        return batch

    def __next__(self) -> HostBatch:
        raise TypeError("rollouts depend on the state of the training: call next(state)")

    def _make(self, number: int, state: Any) -> tuple[HostBatch, float]:
        """A rollout, and the coefficient of the KL after it."""
        data = self._data
        rows = data.batch * data.batches
        count = rows // data.group
        groups = zip(*self._mixed(np.arange(number * count, (number + 1) * count)), strict=True)
        prompts = [prompt for group in groups for prompt in [self._prompt(*group)] * data.group]
        sampler = Sampling(temperature=data.temperature)
        with jax.set_mesh(self._program.mesh):
            key_B = keys(self._seed, number, rows)
            completions = self._author.write(
                state.params, state.frozen, prompts, sampler, key_B, logps_at=data.temperature
            )  # fmt: skip
            known = self._author.known(state.params, state.frozen, completions)
        return self._credited(known | sampling_difference(completions.logps, known))

    def _prompt(self, component: int, number: int) -> Prompt:
        """That of a component's group `number`, epoch after epoch."""
        prompts = self._prompts[component]
        epoch, index = divmod(number, len(prompts))
        if self._data.shuffle:  # the first component's order is that of a source alone: a 0 at the end is no seed
            (index,) = permuted(np.array([index]), len(prompts), (self._seed, int(epoch), int(component)))
        return prompts[index]

    def _credited(self, known: HostBatch) -> tuple[HostBatch, float]:
        """With advantages, all in float32; and the coefficient of the KL that follows from it."""
        exact = {name: known[name].astype(np.float64) for name in ("reward_B", "weight_BT", "ended_B", *RECALLED)}
        rollout = Rollout(**exact, group=self._data.group)
        credit = self._author.policy.credit(rollout, self._coefficient)
        known |= dict(advantage_BT=credit.advantage_BT, return_BT=credit.return_BT)
        known["kl_coefficient_B"] = np.full(len(rollout.reward_B), self._coefficient)
        if rollout.group > 1:  # one completion alone has no spread
            known |= dict(zip(SPREAD, (rollout.spread_B(), rollout.tied_B()), strict=True))
        batch = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in known.items()}
        return batch, credit.coefficient

    def save(self) -> dict[str, Any]:
        """The state, as JSON."""
        rollout = None if self._rollout is None else _packed(self._rollout)
        return dict(batches=self._seen, stream=self._stream, kl_coefficient=self._coefficient, rollout=rollout)

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the last batch that was seen before `save`.

        Raises:
          InputError: the state is of another stream: other prompts, tokenizer or seed, or another setting of the data.
        """
        if state.get("stream") != self._stream:
            raise InputError(
                "the state of the data is of other rollouts: the prompts, the tokenizer, the seed, or a setting of "
                "the data (rewards, group, batch, updates, temperature) is not what it was"
            )
        self._seen, self._coefficient = int(state["batches"]), float(state["kl_coefficient"])
        self._rollout = None if state["rollout"] is None else _unpacked(state["rollout"])

    def close(self) -> None:
        """Nothing to end: the model itself is the worker."""


def sampling_difference(logps: Sequence[Sequence[float]], known: HostBatch) -> HostBatch:
    """How far the sampler's log-probabilities of drawn tokens are from the training's: the mean, and the largest."""
    drawn_BT = known["weight_BT"] > 0
    difference = np.abs(np.concatenate([np.asarray(each, np.float32) for each in logps]) - known["old_BT"][drawn_BT])
    both = (difference.mean(dtype=np.float64), difference.max())
    return {name: np.full(len(logps), number) for name, number in zip(SAMPLING, both, strict=True)}


def _packed(arrays: HostBatch) -> str:
    """Arrays as text: a compressed .npz, the same for the same arrays."""
    file = io.BytesIO()
    np.savez_compressed(file, **cast(Any, arrays))
    return base64.b64encode(file.getvalue()).decode()


def _unpacked(text: str) -> HostBatch:
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as file:
        return dict(file)


DATA = dict(Rollouts=Rollouts)
