"""Training on from another run: its model, tokenizer and parameters are where an experiment with `init_from` begins."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.alphabet import is_lettered
from llm_jax.core.parts import conform, show
from llm_jax.core.tables import InputError
from llm_jax.data.pipeline import Data
from llm_jax.experiment import Experiment, user_modules
from llm_jax.models.inherited import Inherited
from llm_jax.models.model import Model
from llm_jax.text.kept import Kept
from llm_jax.text.tokenizer import Tokenizer, load_tokenizer
from llm_jax.training.checkpoints import Checkpoints
from llm_jax.training.program import Program, TrainState
from llm_jax.training.run import Run


def inherit(experiment: Experiment, workdir: str | Path | None = None) -> Experiment:
    """The experiment with what comes from the run that `init_from` names: how texts are written for its model
    (`rendering`, but for what is learnt), and the model, where it is `Inherited()`.

    Args:
      workdir: of a run that was begun so before: it has all that itself, and the other run may be gone.

    Raises:
      InputError: there is no such run, or the experiment has a tokenizer of its own.
    """
    if not experiment.init_from:
        return experiment
    if experiment.tokenizer != Kept():
        raise InputError(
            f"init_from brings its tokenizer along: set tokenizer=Kept(), not {show(experiment.tokenizer)}"
        )
    before = _experiment(_begun(experiment, workdir) or Run.existing(experiment.init_from))
    there, here = (conform(e.data, Data, "data").rendering for e in (before, experiment))
    changes: dict[str, Any] = {"data.rendering": dataclasses.replace(there, learn=here.learn)}
    if isinstance(experiment.model, Inherited):
        changes["model"] = before.model
    return experiment.override(changes)


def first_tokenizer(experiment: Experiment) -> Tokenizer:
    """The tokenizer that a training of the experiment begins with: that of `init_from`, or one made of its texts."""
    if experiment.init_from:
        return load_tokenizer(Run.existing(experiment.init_from).tokenizer)
    data: Any = experiment.data
    return data.prepare(experiment.tokenizer)


def begin(program: Program) -> TrainState:
    """The state before the first step: drawn from the seed, or with the parameters of the run of `init_from` (their
    average, if it keeps one; of its newest sound checkpoint).

    Raises:
      InputError: that run has no checkpoint, or other parameters than the experiment's model.
    """
    experiment = program.experiment
    if not experiment.init_from:
        return program.begin()
    run = Run.existing(experiment.init_from)
    before = _experiment(run)
    _same_parameters(before, run, program)
    name = "average" if before.ema else "params"
    state = dataclasses.replace(program.begin(), params=None, average=None)  # what was drawn makes room
    with Checkpoints(run.checkpoints, run.manifest) as checkpoints, jax.set_mesh(program.mesh):
        params = checkpoints.restore_params(program.template.params, name).state
    average = jax.tree.map(jnp.copy, params) if experiment.ema else None
    return dataclasses.replace(state, params=params, average=average)


def _begun(experiment: Experiment, workdir: str | Path | None) -> Run | None:
    """The run in `workdir`, if it has a checkpoint of a training that began from `init_from`."""
    if workdir is None or not (Path(workdir) / "manifest.json").exists():
        return None
    run = Run.existing(workdir)
    same = run.manifest.get("init_from") == experiment.init_from
    return run if same and any(run.checkpoints.glob("*")) else None


def _experiment(run: Run) -> Experiment:
    return Experiment.of(run.manifest, user_modules())


def _same_parameters(before: Experiment, run: Run, program: Program) -> None:
    """Nothing, if both models have parameters of the same names and shapes: none would be left out, or drawn.

    Raises:
      InputError: they differ; the message names the first.
    """
    data, tokenizer = conform(before.data, Data, "data"), load_tokenizer(run.tokenizer)
    model = conform(before.model, Model, "model").filled(tokenizer.vocabulary, data.length)
    there, here = _shapes(jax.eval_shape(model.begin, jax.random.key(0))), _shapes(program.boxed)
    if differing := sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name)):
        first = differing[0]
        shapes = f"{there.get(first, 'absent')} in {run.workdir}, and {here.get(first, 'absent')} in this experiment"
        raise InputError(f"init_from: parameter {first} is {shapes}: use model=Inherited(), or one that differs less")


def _shapes(boxed: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_lettered)
    return {".".join(key.key for key in path): leaf.value.shape for path, leaf in leaves}
