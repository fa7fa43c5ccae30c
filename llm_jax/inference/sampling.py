"""How the next token is drawn from a model's scores."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Annotated

import jax
import jax.numpy as jnp

from llm_jax.core.parts import Count, NonNegative, Part, Range, Share, conform, types_of

TopP = Annotated[float, Range(above=0, most=1)]
Penalty = Annotated[float, Range(least=1e-6)]  # what is divided by less may overflow


class Sampler(Part):
    """A pure function of keys and scores. Each member is also a pytree of its numbers.

    So compiled code takes the numbers as arguments, and another temperature compiles nothing again.
    """

    def check(self) -> None:
        """Nothing, if the settings make sense.

        Raises:
          InputError: one is out of its range. (Checked by who samples: inside compiled code there are no numbers.)
        """

    def draw(self, key_B: jax.Array, logits_BV: jax.Array, seen_BV: jax.Array) -> jax.Array:
        """[B] int32: a token for each row, which depends on the row's own key, scores and past only.

        Args:
          logits_BV: float32 scores, -infinity for tokens that are never to be drawn: however many of the best a
            sampler chooses from, those are not among them.
          seen_BV: bool, which tokens the row has in its prompt and its text so far.
        """
        raise NotImplementedError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling(Sampler):
    """From the most plausible tokens at a temperature; the defaults sample from the model as it is.

    In this order: tokens already in the text are made less likely by `repetition_penalty` (Keskar et al. 2019), scores
    are divided by `temperature`, and of the tokens are kept the `top_k` best (Fan et al. 2018; 0: all), then the best
    that together hold `top_p` of the probability (Holtzman et al. 2020), then those with at least `min_p` of the best
    one's (Nguyen et al. 2024). The best token is always kept; tokens of equal score are kept or dropped together.
    `temperature` 0 takes the best token (greedy): only the penalty matters then.
    """

    temperature: NonNegative = 1.0
    top_k: Count = 0
    top_p: TopP = 1.0
    min_p: Share = 0.0
    repetition_penalty: Penalty = 1.0

    def check(self):
        for name, declared in types_of(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, numbers.Real):  # NumPy's too, and 40.0 where a whole number is asked for
                number = float(value)
                value = int(number) if number.is_integer() else number
            conform(value, declared, name)

    def draw(self, key_B, logits_BV, seen_BV):
        penalised_BV = self.penalise(logits_BV, seen_BV)

        def greedy() -> jax.Array:
            return penalised_BV.argmax(-1).astype(jnp.int32)

        def sample() -> jax.Array:
            return jax.vmap(jax.random.categorical)(key_B, self.keep(penalised_BV)).astype(jnp.int32)

        return jax.lax.cond(self.temperature < jnp.finfo(jnp.float32).tiny, greedy, sample)  # 0, as it is computed with

    def penalise(self, logits_BV: jax.Array, seen_BV: jax.Array) -> jax.Array:
        """Scores of tokens already seen moved down: positive ones divided, negative ones multiplied."""
        worse_BV = jnp.where(logits_BV > 0, logits_BV / self.repetition_penalty, logits_BV * self.repetition_penalty)
        return jnp.where(seen_BV, worse_BV, logits_BV)

    def keep(self, logits_BV: jax.Array) -> jax.Array:
        """Scores at the temperature (not 0), with -infinity for the tokens that are not kept."""
        best_B1 = logits_BV.max(-1, keepdims=True)
        # Rounding would leave no noise of numbers so large, and larger ones are infinite: the best is moved to 0 first.
        small_B1 = jnp.abs(best_B1 / self.temperature) < 1e4
        logits_BV = jnp.where(small_B1, logits_BV, logits_BV - best_B1) / self.temperature
        # Sorting a whole vocabulary costs more than the rest together: only when asked for.
        sorts = (self.top_k > 0) | (self.top_p < 1)
        least_B1 = jax.lax.cond(
            sorts, self._least, lambda scores_BV: jnp.full_like(scores_BV[:, :1], -jnp.inf), logits_BV
        )
        best_B1 = logits_BV.max(-1, keepdims=True)
        near_B1 = best_B1 + jnp.log(jnp.asarray(self.min_p, jnp.float32))
        return jnp.where(logits_BV >= jnp.maximum(least_B1, near_B1), logits_BV, -jnp.inf)

    def _least(self, logits_BV: jax.Array) -> jax.Array:
        """[B, 1]: the lowest score that top-k, then top-p keep."""
        down_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        vocabulary = down_BV.shape[-1]
        k = jnp.where(self.top_k > 0, jnp.clip(self.top_k, 1, vocabulary), vocabulary)
        kth_B1 = jax.lax.dynamic_slice_in_dim(down_BV, k - 1, 1, axis=-1)
        down_BV = jnp.where(down_BV >= kth_B1, down_BV, -jnp.inf)
        probability_BV = jax.nn.softmax(down_BV, axis=-1)
        better_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV  # held by the tokens before each
        kept_B1 = ((better_BV < self.top_p) & (down_BV > -jnp.inf)).sum(-1, keepdims=True)
        # rounding must not drop what top_p=1 keeps
        nucleus_B1 = jnp.take_along_axis(down_BV, jnp.maximum(kept_B1 - 1, 0), axis=-1)
        return jnp.where(self.top_p < 1, nucleus_B1, kth_B1)


SAMPLERS = dict(Sampling=Sampling)
