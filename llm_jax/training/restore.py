"""From a run's folder back to the experiment and the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from llm_jax.core.process import keep_memory
from llm_jax.experiment import Experiment
from llm_jax.inference.language_model import LanguageModel
from llm_jax.text.tokenizer import Tokenizer, load_tokenizer
from llm_jax.training.check import check_families
from llm_jax.training.checkpoints import Checkpoints
from llm_jax.training.loop import fill, keep_compiled, language_model
from llm_jax.training.program import Program
from llm_jax.training.run import Run


def restore(
    workdir: str | Path, assignments: Sequence[str] = (), modules: tuple[str, ...] = (), checkpoint: str = "newest"
) -> tuple[Program, Tokenizer, Any]:
    """The program of a run's experiment, its tokenizer, and its parameters (their average, if it keeps one).

    Args:
      assignments: settings to change first, as of `--set`; the parameters must still fit.
      modules: names of user modules that the manifest may name.
      checkpoint: "newest", "best" (by the loss of the evaluations), or a step.

    Raises:
      InputError: there is no run, it is damaged, or it has no checkpoint yet.
    """
    keep_memory()
    keep_compiled()
    run = Run.existing(workdir)
    experiment = Experiment.of(run.manifest, modules).set(list(assignments), modules)
    check_families(experiment)
    tokenizer = load_tokenizer(run.tokenizer)
    experiment = fill(experiment, tokenizer)
    layout: Any = experiment.layout
    program = Program(experiment, layout.mesh(), tokenizer)
    name = "average" if experiment.ema else "params"
    with Checkpoints(run.checkpoints, run.manifest) as checkpoints, jax.set_mesh(program.mesh):
        params = checkpoints.restore_params(program.parameters, name, checkpoint).state
    return program, tokenizer, params


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
