"""What an experiment becomes when it meets devices: a state, and one pure jitted function that takes it a step on."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.core import parts
from llm_jax.core.arrays import Batch
from llm_jax.core.dims import is_lettered
from llm_jax.core.errors import InputError
from llm_jax.core.seeds import random_key
from llm_jax.engine.gradients import gradients, related
from llm_jax.experiment import Experiment
from llm_jax.models.pretrained import Pretrained
from llm_jax.objectives.objective import Relating, Sums, check_sums
from llm_jax.parallel.layout import batch_sharding, shardings
from llm_jax.text.tokenizer import Tokenizer

WEIGHTS = ("base", "reference", "pretrained")  # of what is frozen; the rest is what the objective made of the data


@flax.struct.dataclass
class TrainState:
    """All that a training carries from step to step. Randomness is not in it: keys are folded from seed and step."""

    step: jax.Array
    params: Any
    optimizer: Any
    average: Any  # an exponential moving average of the parameters, or None
    sums: dict[str, jax.Array]  # of the objective, over the steps since the last log
    skipped: jax.Array  # steps whose loss, gradient or update was not finite
    skipped_in_a_row: jax.Array
    longest_streak: jax.Array  # the most of them in a row since the last log
    frozen: Any = None  # weights that an objective reads and nobody trains

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return f"TrainState(step={self.step}, {count:,} trained parameters)"

    @property
    def best(self) -> Any:
        """What to evaluate and sample with."""
        return self.params if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class Program:
    """An experiment whose model is filled in, on a mesh.

    Attributes:
      tokenizer: the run's; only an objective that prepares something from the data asks for it.
      frozen: what the run keeps, of whose checkpoint the parameters are; None: what a run begins with.
      boxed: the model's parameters as shapes with their letters.
      template: the state as shapes with shardings; what checkpoints are restored to.
    """

    experiment: Experiment
    mesh: Mesh
    tokenizer: Tokenizer | None = None
    frozen: Any = None

    @functools.cached_property
    def boxed(self) -> Any:
        return jax.eval_shape(self._draw, jax.random.key(0))

    @functools.cached_property
    def parted(self) -> tuple[Any, Any]:
        """The trained and the other parameters, as shapes with their letters."""
        return jax.eval_shape(self._split, jax.random.key(0), self.boxed)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        return self.experiment.optimizer.transform(self.schedule_steps, self.parted[0])

    @property
    def schedule_steps(self) -> int:
        return self.experiment.schedule_steps or self.experiment.steps

    @functools.cached_property
    def pretrained(self) -> dict[str, Pretrained]:
        """The models of other runs that training asks, by the folders of their runs; those of reports come later."""
        training = dataclasses.replace(self.experiment, report=())
        return {part.run: part for _, part in parts.walk(training) if isinstance(part, Pretrained)}

    @functools.cached_property
    def made(self) -> dict[str, Any]:
        """What the objective makes of the data."""
        return self.experiment.objective.prepare(self.experiment.data, self.tokenizer) or {}

    @functools.cached_property
    def parameters(self) -> Any:
        """The model's parameters as shapes with shardings."""
        return self._placed(self.boxed)

    def of_pretrained(self, part: Pretrained) -> Any:
        """The parameters of another run's model, as shapes with shardings."""
        return self._placed(jax.eval_shape(part.model.begin, jax.random.key(0)))

    def _placed(self, boxed: Any) -> Any:
        def one(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(one, nn.meta.unbox(boxed), shardings(boxed, self.mesh))

    @functools.cached_property
    def template(self) -> TrainState:
        others = {run: self.of_pretrained(part) for run, part in self.pretrained.items()}
        shapes = jax.eval_shape(self._begin, jax.random.key(0), self.made, others)
        whole = NamedSharding(self.mesh, PartitionSpec())
        trained, base = map(self._placed, self.parted)
        known = {}
        for tree in (trained, dict(base=base), dict(reference=self.parameters), dict(pretrained=others)):
            known |= {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

        def placed(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            """An optimiser's moment lies as its parameter does; what has another shape is kept whole."""
            like = known.get(_names(path))
            sharding = like.sharding if like is not None and like.shape == leaf.shape else whole
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(placed, shapes)

    def begin(self, params: Any = None, others: Any = None) -> TrainState:
        """The state before the first step: drawn from the seed, each device drawing its own share.

        Args:
          params: the model's parameters, where they are not to be drawn. They are used up.
          others: those of the runs of `pretrained`.
        """
        others = others or {}
        with jax.set_mesh(self.mesh):
            key = random_key(self.experiment.seed)
            if params is None:
                return jax.jit(self._begin, out_shardings=self._shardings())(key, self.made, others)
            used_up = () if self.parted[1] else (1,)
            start = jax.jit(self._start, out_shardings=self._shardings(), donate_argnums=used_up)
            return start(key, params, self.made, others)

    def draw(self) -> Any:
        """The model's parameters, drawn from the seed."""
        with jax.set_mesh(self.mesh):
            laid = jax.tree.map(lambda leaf: leaf.sharding, self.parameters)
            return jax.jit(self._drawn, out_shardings=laid)(random_key(self.experiment.seed))

    def freeze(self, params: Any, others: Any = None) -> Any:
        """What a run that begins with these parameters reads and nobody trains; None if there is nothing."""
        return self._frozen(*self._split(jax.random.key(0), self._boxing(params)), self.made, others or {})

    def whole(self, trained: Any, frozen: Any) -> Any:
        """The model's parameters from the trained ones and what is frozen."""
        return self.experiment.tuning.join(trained, _base(frozen))

    def merged(self, trained: Any, frozen: Any) -> Any:
        """As `whole`, as the plain model has them: without adapters beside them, in float32."""
        base = _base(frozen)
        return jax.jit(self.experiment.tuning.merged)(trained, base) if base else trained

    def beside(self, frozen: Any) -> Any:
        """What is frozen beside the model's own parameters, with the whole reference, as objectives see it."""
        if not (base := _base(frozen)):
            return frozen
        seen = {name: value for name, value in frozen.items() if name != "base"}
        if "reference" in seen:
            seen["reference"] = self.experiment.tuning.original(seen["reference"], base)
        return seen

    def _shardings(self) -> Any:
        return jax.tree.map(lambda leaf: leaf.sharding, self.template)

    def _draw(self, key: jax.Array) -> Any:
        return self.experiment.model.begin(key)

    def _drawn(self, key: jax.Array) -> Any:
        # a weak type, as of jnp.full(shape, 1.0), is lost in the first step: the second would compile again
        return jax.tree.map(lambda x: x.astype(x.dtype), nn.meta.unbox(self._draw(key)))

    def _boxing(self, params: Any) -> Any:
        return jax.tree.map(lambda box, value: box.replace_boxed(value), self.boxed, params, is_leaf=is_lettered)

    def _split(self, key: jax.Array, boxed: Any) -> tuple[Any, Any]:
        return self.experiment.tuning.split(jax.random.fold_in(key, 1), boxed, self.experiment.model.trunks())

    def _begin(self, key: jax.Array, made: Any, others: Any) -> TrainState:
        return self._start(key, self._drawn(key), made, others)

    def _start(self, key: jax.Array, params: Any, made: Any, others: Any) -> TrainState:
        trained, base = self._split(key, self._boxing(params))
        frozen = self._frozen(trained, base, made, others)
        params = nn.meta.unbox(trained)
        none = jnp.zeros((), jnp.int32)
        average = jax.tree.map(jnp.copy, params) if self.experiment.ema else None
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), self.sums(params, frozen))
        return TrainState(none, params, self.optimizer.init(params), average, sums, none, none, none, frozen)

    def _frozen(self, trained: Any, base: Any, made: Any, others: Any) -> Any:
        frozen = dict(made)
        if base:
            frozen["base"] = nn.meta.unbox(base)
        if self.experiment.objective.keeps_reference():
            kept = self.experiment.tuning.kept(nn.meta.unbox(trained))
            frozen["reference"] = jax.tree.map(jnp.copy, kept)
        if others:
            frozen["pretrained"] = others
        return frozen or None

    def sums(self, params: Any, frozen: Any) -> Any:
        """The shapes of the objective's sums, in training; `params` and `frozen` may be shapes too."""
        data, precision = self.experiment.data, self.experiment.precision
        key = jax.eval_shape(lambda: jax.random.key(0))

        def sums(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> Any:
            made = self._objective(precision.cast(params), batch, key, self._cast(frozen))
            return check_sums(self.experiment.objective, made)

        return jax.eval_shape(sums, params, frozen, data.blank(1), key)

    def _objective(self, params: Any, batch: Batch, key: jax.Array | None, frozen: Any) -> Sums:
        return self.experiment.objective(
            self.experiment.model, self.whole(params, frozen), self.beside(frozen), batch, key
        )

    def _cast(self, frozen: Any) -> Any:
        """What is frozen, its weights in the precision that computes; what the objective made stays as it is."""
        precision = self.experiment.precision
        return frozen and {name: precision.cast(value) if name in WEIGHTS else value for name, value in frozen.items()}

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
        precision = self.experiment.precision
        return jax.jit(
            lambda params, frozen, batch: self._objective(precision.cast(params), batch, None, self._cast(frozen))
        )

    def _rows(self) -> int:
        data, objective = self.experiment.data, self.experiment.objective
        if data.batch % self.experiment.microbatches:
            raise InputError(
                f"data.batch={data.batch} cannot be divided into microbatches={self.experiment.microbatches}"
            )
        rows = data.batch // self.experiment.microbatches
        at_once = data.batch if isinstance(objective, Relating) else rows
        if at_once < objective.together:
            cure = "" if at_once == data.batch else f", or lower microbatches={self.experiment.microbatches}"
            raise InputError(
                f"{type(objective).__name__} compares each row with others, and has {at_once} at once: raise data.batch"
                f"={data.batch}{cure}"
            )
        batch_sharding(self.mesh, rows)
        return data.batch

    def _update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        experiment = self.experiment
        key = jax.random.fold_in(random_key(experiment.seed), state.step)
        slopes, sums = self._gradients(state, batch, key)
        weight = jnp.maximum(sums["weight"], 1e-30)
        slopes = jax.tree.map(lambda g: g / weight, slopes)
        change, moments = self.optimizer.update(slopes, state.optimizer, state.params, step=state.step)
        norm = optax.tree.norm(slopes)
        measured = jnp.stack([norm, optax.tree.norm(change), sums["loss"]])  # a finite gradient can still ruin all
        sound = jnp.isfinite(measured).all()
        taken = sound & (sums["weight"] > 0)  # a batch without a single target changes nothing either

        params = optax.apply_updates(state.params, change)
        average = state.average
        if average is not None:
            # at first the decay is shorter, or the random beginning would stay in the average for long
            passed = (state.step - state.skipped).astype(jnp.float32)
            decay = jnp.minimum(experiment.ema, (1 + passed) / (10 + passed))
            average = optax.incremental_update(params, average, 1 - decay)
        params, moments, average = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old),
            (params, moments, average), (state.params, state.optimizer, state.average),
        )  # fmt: skip  # Optax's counts too: they correct moments; the schedule follows the step's number
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
        rate = experiment.optimizer.rate(state.step, self.schedule_steps)
        return after, dict(gradient_norm=norm, learning_rate=rate, weight=sums["weight"])

    def _gradients(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, Sums]:
        """The gradient of the objective, and its sums, with what computes in the experiment's precision."""
        count, objective, model = self.experiment.microbatches, self.experiment.objective, self.experiment.model
        params, frozen = self.experiment.precision.cast(state.params), self._cast(state.frozen)
        if count > 1 and isinstance(objective, Relating):
            seen = self.beside(frozen)
            return related(
                lambda params, piece, key: objective.represent(model, self.whole(params, frozen), seen, piece, key),
                objective.relate, params, batch, key, count,
            )  # fmt: skip
        return gradients(
            lambda params, batch, key: self._objective(params, batch, key, frozen), params, batch, key, count
        )


def fill(experiment: Experiment, tokenizer: Tokenizer) -> Experiment:
    """The experiment with what its model leaves to the data filled in."""
    model, data = experiment.model, experiment.data
    source, start = data.presentation.source(), tokenizer.special.get("bos")
    return experiment.override({"model": model.filled(tokenizer.vocabulary, data.length, source, start)})


def _base(frozen: Any) -> Any:
    """The parameters that are not trained, of what is frozen; {} where all are trained."""
    return frozen.get("base", {}) if frozen else {}


def _names(path: Any) -> tuple[str, ...]:
    """The dictionary keys at the end of a path: a parameter's name, and the same in an optimiser's moments."""
    names: list[str] = []
    for step in reversed(path):
        if not isinstance(step, jax.tree_util.DictKey):
            break
        names.append(step.key)
    return tuple(reversed(names))
