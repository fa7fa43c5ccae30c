"""What an experiment becomes when it meets devices: a state, and one pure jitted function that takes it a step on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.core.tables import InputError
from llm_jax.experiment import Experiment
from llm_jax.parallel.layout import batch_sharding, shardings
from llm_jax.text.tokenizer import Tokenizer

Batch = Mapping[str, Any]


@flax.struct.dataclass
class TrainState:
    """All that a training carries from step to step. Randomness is not in it: keys are folded from seed and step."""

    step: jax.Array
    params: Any
    optimizer: Any
    average: Any  # an exponential moving average of the parameters, or None
    sums: dict[str, jax.Array]  # of the objective, over the steps since the last log
    skipped: jax.Array  # steps whose loss or gradient was not finite
    skipped_in_a_row: jax.Array
    longest_streak: jax.Array  # the most of them in a row since the last log
    frozen: Any = None  # weights that an objective reads and nobody trains

    @property
    def best(self) -> Any:
        """What to evaluate and sample with."""
        return self.params if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class Program:
    """An experiment whose model is filled in, on a mesh.

    Attributes:
      tokenizer: the run's; only an objective that prepares something from the data asks for it.
      boxed: the parameters' shapes with their letters.
      template: the state as shapes with shardings; what checkpoints are restored to.
    """

    experiment: Experiment
    mesh: Mesh
    tokenizer: Tokenizer | None = None

    @functools.cached_property
    def frozen(self) -> Any:
        """What the objective reads and nobody trains, at the beginning."""
        objective: Any = self.experiment.objective
        return objective.prepare(self.experiment.data, self.tokenizer)

    @functools.cached_property
    def boxed(self) -> Any:
        return jax.eval_shape(self._draw, jax.random.key(0))

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        optimizer: Any = self.experiment.optimizer
        return optimizer.transform(self.experiment.steps, self.boxed)

    @functools.cached_property
    def parameters(self) -> Any:
        """The parameters as shapes with shardings."""

        def one(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(one, nn.meta.unbox(self.boxed), shardings(self.boxed, self.mesh))

    @functools.cached_property
    def template(self) -> TrainState:
        shapes = jax.eval_shape(self._begin, jax.random.key(0), self.frozen)
        whole = NamedSharding(self.mesh, PartitionSpec())
        params = shardings(self.boxed, self.mesh)
        known = {
            _names(path): (leaf.shape, sharding)
            for (path, leaf), sharding in zip(
                jax.tree_util.tree_leaves_with_path(shapes.params), jax.tree.leaves(params), strict=True
            )
        }

        def placed(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            """An optimiser's moment lies as its parameter does; what has another shape is kept whole."""
            shape, sharding = known.get(_names(path), (None, whole))
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding if shape == leaf.shape else whole)

        return jax.tree_util.tree_map_with_path(placed, shapes)

    def begin(self) -> TrainState:
        """The state before the first step: drawn from the seed, each device drawing its own share."""
        with jax.set_mesh(self.mesh):
            key = jax.random.key(self.experiment.seed)
            return jax.jit(self._begin, out_shardings=self._shardings())(key, self.frozen)

    def _shardings(self) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.template)

    def _draw(self, key: jax.Array) -> Any:
        model: Any = self.experiment.model
        return model.begin(key)

    def _begin(self, key: jax.Array, frozen: Any) -> TrainState:
        # a weak type, as of jnp.full(shape, 1.0), is lost in the first step: the second would compile again
        params = jax.tree.map(lambda x: x.astype(x.dtype), nn.meta.unbox(self._draw(key)))
        none = jnp.zeros((), jnp.int32)
        average = jax.tree.map(jnp.copy, params) if self.experiment.ema else None
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.sums(params, frozen))
        return TrainState(none, params, self.optimizer.init(params), average, sums, none, none, none, frozen)

    def sums(self, params: Any, frozen: Any) -> Any:
        """The shapes of the objective's sums, in training; `params` and `frozen` may be shapes too."""
        data, precision = (cast(Any, part) for part in (self.experiment.data, self.experiment.precision))
        key = jax.eval_shape(lambda: jax.random.key(0))

        def sums(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> Any:
            return self._objective(precision.cast(params), batch, key, frozen)

        return jax.eval_shape(sums, params, frozen, data.blank(1), key)

    def _objective(self, params: Any, batch: Batch, key: jax.Array | None, frozen: Any = None) -> dict[str, jax.Array]:
        objective: Any = self.experiment.objective
        return objective(self.experiment.model, params, frozen, batch, key)

    # ------------------------------------------------------------------------------------------------------- the step

    @functools.cached_property
    def update(self):
        """`update(state, batch) -> state, metrics`. The state that goes in is used up."""
        rows = batch_sharding(self.mesh, self._rows())
        return jax.jit(
            self._update,
            donate_argnums=0,
            in_shardings=(self._shardings(), rows),
            out_shardings=(self._shardings(), None),
        )

    @functools.cached_property
    def measure(self):
        """`measure(params, frozen, batch) -> the objective's sums`, without dropout."""
        precision: Any = self.experiment.precision
        return jax.jit(lambda params, frozen, batch: self._objective(precision.cast(params), batch, None, frozen))

    def _rows(self) -> int:
        data: Any = self.experiment.data
        if data.batch % self.experiment.microbatches:
            raise InputError(
                f"data.batch={data.batch} cannot be divided into microbatches={self.experiment.microbatches}"
            )
        batch_sharding(self.mesh, data.batch // self.experiment.microbatches)
        return data.batch

    def _update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        experiment, optimizer = self.experiment, self.experiment.optimizer
        key = jax.random.fold_in(jax.random.key(experiment.seed), state.step)
        gradients, sums = self._gradients(state, batch, key)
        weight = jnp.maximum(sums["weight"], 1e-30)
        gradients = jax.tree.map(lambda g: g / weight, gradients)
        norm = optax.tree.norm(gradients)
        sound = jnp.isfinite(norm) & jnp.isfinite(sums["loss"])
        taken = sound & (sums["weight"] > 0)  # a batch without a single target changes nothing either

        change, moments = self.optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, change)
        average = state.average
        if average is not None:
            # at first the decay is shorter, or the random beginning would stay in the average for long
            passed = state.step.astype(jnp.float32)
            decay = jnp.minimum(experiment.ema, (1 + passed) / (10 + passed))
            average = optax.incremental_update(params, average, 1 - decay)
        params, moments, average = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old) if jnp.issubdtype(new.dtype, jnp.floating) else new,
            (params, moments, average), (state.params, state.optimizer, state.average),
        )  # fmt: skip  # Optax's counts go on: the schedule follows the steps, taken or not
        first = state.step % experiment.log_every == 0
        kept = jax.tree.map(lambda old, new: jnp.where(first, 0, old) + jnp.where(sound, new, 0), state.sums, sums)
        skipped = (~sound).astype(jnp.int32)
        streak = (state.skipped_in_a_row + 1) * skipped
        after = dataclasses.replace(
            state,
            step=state.step + 1, params=params, optimizer=moments, average=average, sums=kept,
            skipped=state.skipped + skipped, skipped_in_a_row=streak,
            longest_streak=jnp.maximum(jnp.where(first, 0, state.longest_streak), streak),
        )  # fmt: skip
        rate: Any = optimizer
        return after, dict(gradient_norm=norm, learning_rate=rate.rate(state.step, experiment.steps))

    def _gradients(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """The gradient of the summed loss and what is auxiliary to it, in float32, and all sums; by microbatches."""
        count = self.experiment.microbatches
        precision: Any = self.experiment.precision
        params = precision.cast(state.params)

        def loss(params: Any, batch: Batch, key: jax.Array):
            sums = self._objective(params, batch, key, state.frozen)
            return sums["loss"] + sums.get("auxiliary", 0.0), sums

        def one(batch: Batch, key: jax.Array):
            gradients, sums = jax.grad(loss, has_aux=True)(params, batch, key)
            return jax.tree.map(lambda g: g.astype(jnp.float32), gradients), sums

        if count == 1:
            return one(batch, key)

        def add(total: Any, each: Any):
            return jax.tree.map(jnp.add, total, one(*each)), None

        # rows i, i + count, ...: so every device keeps its own rows
        pieces = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (state.params, state.sums))
        return jax.lax.scan(add, zeros, (pieces, jax.random.split(key, count)))[0]


def _names(path: Any) -> tuple[str, ...]:
    """The dictionary keys at the end of a path: a parameter's name, and the same in an optimiser's moments."""
    names: list[str] = []
    for step in reversed(path):
        if not isinstance(step, jax.tree_util.DictKey):
            break
        names.append(step.key)
    return tuple(reversed(names))
