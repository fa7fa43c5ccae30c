"""From a run's folder back to the experiment and the model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.core.finite import is_finite
from llm_jax.core.parts import check
from llm_jax.core.runtime import set_up
from llm_jax.engine.check import check_labels
from llm_jax.engine.evaluation import best_mode
from llm_jax.engine.step import WEIGHTS, Program, fill
from llm_jax.engine.trained import language_model
from llm_jax.experiment import Experiment
from llm_jax.inference.language_model import LanguageModel
from llm_jax.optim.trainable import TrainAll
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.runs.fingerprints import check_belongs, run_tokenizer
from llm_jax.runs.folder import Run
from llm_jax.runs.frozen import kept
from llm_jax.text.tokenizer import Tokenizer


def restore(
    workdir: str | Path, assignments: Sequence[str] = (), modules: tuple[str, ...] = (), checkpoint: str = "newest"
) -> tuple[Program, Tokenizer, Any]:
    """The program of a run's experiment, its tokenizer, and its parameters (their average, if it keeps one).

    The parameters are the whole model's, whichever of them were trained: the program trains all.

    Args:
      assignments: settings to change first, as of `--set`; the parameters must still fit.
      modules: names of user modules that the manifest may name.
      checkpoint: "newest", "best" (by the metric that `best_by` names), or a step.

    Raises:
      InputError: there is no run, it is damaged, or it has no checkpoint yet.
    """
    set_up()
    run = Run.existing(workdir)
    before = Experiment.of(run.manifest, modules)
    experiment = before.set(list(assignments), modules)
    experiment = check_labels(check(experiment))
    tokenizer = run_tokenizer(run)
    experiment = fill(experiment, tokenizer)
    mesh = experiment.layout.mesh()
    free = ("model", "layout", "ema", "best_by", "best_mode")
    saved = dataclasses.replace(before, **{name: getattr(experiment, name) for name in free})
    trained = Program(saved, mesh, tokenizer)
    params, frozen = open_checkpoint(run, trained, checkpoint, fill(before, tokenizer))
    program = Program(experiment.override({"tuning": TrainAll()}), mesh, tokenizer)
    if frozen is not None:
        beside = trained.beside(frozen)
        if before.objective != experiment.objective:  # what that made of the data is not this one's, but weights are
            beside = program.made | {name: beside[name] for name in WEIGHTS if name in beside}
        program = dataclasses.replace(program, frozen=beside)
    return program, tokenizer, params


def open_checkpoint(
    run: Run, program: Program, checkpoint: str = "newest", own: Experiment | None = None
) -> tuple[Any, Any]:
    """The whole model's parameters of a checkpoint that was saved by `program`, and what was frozen.

    Args:
      own: the run's own experiment, filled in, where that of the program has other settings.

    Raises:
      InputError: there is no such checkpoint, it is not of the run as it is now, or it holds other arrays, or numbers
        that are not finite.
    """
    name = "average" if program.experiment.ema else "params"
    experiment = program.experiment
    mode = best_mode(experiment) if checkpoint == "best" else "min"
    belongs = functools.partial(check_belongs, run, own or experiment)
    opened = Checkpoints(run.checkpoints, run.manifest, best_by=experiment.best_by, best_mode=mode, belongs=belongs)
    with opened as checkpoints, jax.set_mesh(program.mesh):
        if not checkpoints.steps():
            raise InputError(f"no checkpoint in {run.checkpoints}: train first")
        template = program.template if run.frozen.exists() else None  # it is there before the first checkpoint is
        parameters = program.parameters if template is None else template.params
        params = checkpoints.restore_params(parameters, name, checkpoint).state
        if template is None:  # nothing was frozen: all of the model was trained, or it was imported
            frozen = None
        else:
            frozen = kept(run, template.frozen)
            params = program.merged(params, frozen)
    _check_finite(params, run)
    return params, frozen


def _check_finite(params: Any, run: Run) -> None:
    """Raises InputError: a parameter holds NaN or infinity; the message names it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not all(is_finite(np.asarray(shard.data)) for shard in leaf.addressable_shards):
            raise InputError(
                f"the parameter {'.'.join(key.key for key in path)} in {run.workdir} holds numbers that are not finite "
                "(NaN or infinity): name another checkpoint or run"
            )


def load(
    workdir: str | Path, modules: tuple[str, ...] = (), *, checkpoint: str = "newest", assignments: Sequence[str] = ()
) -> LanguageModel:
    """The language model of a run, to generate and score with. The arguments are those of `restore`.

    A run of many devices opens on one with `assignments=["layout=Layout(1)"]`.

    Raises:
      InputError: there is no run, it is damaged, or it has no checkpoint yet.
    """
    program, tokenizer, params = restore(workdir, assignments, modules, checkpoint)
    return language_model(program.experiment, tokenizer, params)
