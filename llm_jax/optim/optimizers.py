"""Optimisers, from Optax."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from llm_jax.core.dims import Lettered, is_lettered
from llm_jax.core.parts import NonNegative, Part, Positive, Rate, Size
from llm_jax.optim.adafactor import clip_by_matrix_rms, scale_by_factored_rms
from llm_jax.optim.schedules import Cosine, Schedule

OUTSIDE = frozenset("VOA")  # words, classes, pixels: of the layers at a model's two ends, which Muon is not for


class Optimizer(Part):
    """`optimizer.transform(steps, boxed)` is an Optax transformation. `boxed` are the parameters with their letters.

    All have: a peak `learning_rate`, a `schedule`, decoupled `weight_decay` on matrices alone (not on biases and
    scales), and gradients clipped to the global norm `clip` (0: not clipped).
    """

    learning_rate: NonNegative
    schedule: Schedule
    weight_decay: NonNegative
    clip: NonNegative

    def rule(self, rate: optax.Schedule, decays: Any, boxed: Any) -> optax.GradientTransformation:
        raise NotImplementedError

    def rate(self, step: jax.Array, steps: int) -> jax.Array:
        return self.learning_rate * self.schedule.share(step.astype(jnp.float32), steps)

    def transform(self, steps: int, boxed: Any) -> optax.GradientTransformationExtraArgs:
        """The whole rule, clipping and schedule included.

        Its `update` takes the number of the training step as `step`, which the schedule follows. Without it the
        schedule follows Optax's own counts, which stand still in a step that is skipped.
        """
        decays = is_matrix(boxed)

        def chain(step: jax.Array | None) -> optax.GradientTransformation:
            rule = self.rule(
                lambda count: self.rate(jnp.asarray(count if step is None else step), steps), decays, boxed
            )
            return optax.chain(optax.clip_by_global_norm(self.clip), rule) if self.clip else rule

        def update(updates: Any, state: Any, params: Any = None, *, step: jax.Array | None = None, **_: Any):
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Optax is written for these
                return chain(step).update(updates, state, params)

        return optax.GradientTransformationExtraArgs(chain(None).init, update)


def is_matrix(boxed: Any) -> Any:
    """True for what a model contracts or looks up, whatever its rank; False for what it multiplies by or adds.

    A bias may have several axes, and so may the scale of a norm over heads: that is no matrix.
    """
    return jax.tree.map(lambda leaf: leaf.role in ("kernel", "table"), boxed, is_leaf=is_lettered)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """Loshchilov & Hutter 2019."""

    learning_rate: NonNegative = 1e-3
    schedule: Schedule = Cosine()
    weight_decay: NonNegative = 0.1
    clip: NonNegative = 1.0
    b1: Rate = 0.9
    b2: Rate = 0.95
    epsilon: Positive = 1e-8

    def rule(self, rate, decays, boxed):
        return optax.adamw(rate, self.b1, self.b2, self.epsilon, weight_decay=self.weight_decay, mask=decays)


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
    """Second moments as a row and a column for each matrix (Shazeer & Stern 2018), with the rate given, not relative.

    A matrix is a layer's or an expert's own. Of a kernel with more axes, the two largest are its rows and columns, for
    each place along the others. Scales and biases are not factored.
    """

    learning_rate: NonNegative = 1e-2
    schedule: Schedule = Cosine()
    weight_decay: NonNegative = 0.0
    clip: NonNegative = 1.0
    momentum: Rate = 0.0
    smallest: Size = 128  # dimensions below this are not factored

    def rule(self, rate, decays, boxed):
        # optax.adafactor decays by the bare factor, not by rate x factor: so the pieces are put together here
        return optax.chain(
            scale_by_factored_rms(boxed, self.smallest),
            clip_by_matrix_rms(boxed, 1.0),
            optax.ema(self.momentum, debias=False) if self.momentum else optax.identity(),
            optax.add_decayed_weights(self.weight_decay, decays),
            optax.scale_by_learning_rate(rate),
        )


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """The sign of a mixed momentum (Chen et al. 2023): wants a rate 3 to 10 times smaller than AdamW's."""

    learning_rate: NonNegative = 2e-4
    schedule: Schedule = Cosine()
    weight_decay: NonNegative = 0.5
    clip: NonNegative = 1.0
    b1: Rate = 0.9
    b2: Rate = 0.99

    def rule(self, rate, decays, boxed):
        return optax.lion(rate, self.b1, self.b2, weight_decay=self.weight_decay, mask=decays)


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Orthogonalised momentum for the matrices inside a model (Jordan 2024), AdamW for all else.

    Which axes of a kernel are its rows and columns follows from its letters. `learning_rate` is the matrices', with
    updates scaled to AdamW's usual size (Liu et al. 2025); `adam_rate` is that of embeddings, output layers, what reads
    pixels, scales and biases.
    """

    learning_rate: Positive = 2e-3
    schedule: Schedule = Cosine()
    weight_decay: NonNegative = 0.1
    clip: NonNegative = 1.0
    momentum: Rate = 0.95
    adam_rate: NonNegative = 1e-3
    b1: Rate = 0.9
    b2: Rate = 0.95

    def rule(self, rate, decays, boxed):
        share = self.adam_rate / self.learning_rate
        axes = jax.tree.map(_rows_and_columns, boxed, is_leaf=is_lettered)
        kinds = jax.tree.map(lambda leaf: type(_rows_and_columns(leaf)).__name__, boxed, is_leaf=is_lettered)
        matrices = muon(
            rate,
            beta=self.momentum,
            weight_decay=self.weight_decay,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=axes,
        )
        others = optax.adamw(
            lambda step: share * rate(step), self.b1, self.b2, weight_decay=self.weight_decay, mask=decays
        )
        parted: Any = dict(MuonDimensionNumbers=matrices, MaskedNode=others)
        return optax.partition(parted, kinds)


def _rows_and_columns(leaf: Lettered) -> MuonDimensionNumbers | optax.MaskedNode:
    """The reduced and the produced axes of a kernel that maps to or from the width D; `MaskedNode`: not for Muon."""
    letters = leaf.letters
    inside = letters.replace("L", "").replace("E", "")
    if leaf.role != "kernel" or "D" not in inside or len(inside) < 2 or set(inside) & OUTSIDE:
        return optax.MaskedNode()
    width = (letters.index("D"),)
    others = tuple(i for i, a in enumerate(letters) if a not in "LED")
    return MuonDimensionNumbers(width, others) if inside[0] == "D" else MuonDimensionNumbers(others, width)


OPTIMIZERS = dict(AdamW=AdamW, Adafactor=Adafactor, Lion=Lion, Muon=Muon)
