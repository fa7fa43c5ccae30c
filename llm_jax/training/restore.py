"""From a run's folder back to the experiment and the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from llm_jax.experiment import Experiment
from llm_jax.inference.language_model import LanguageModel
from llm_jax.text.tokenizer import Tokenizer, load_tokenizer
from llm_jax.training.checkpoints import Checkpoints
from llm_jax.training.loop import fill, keep_compiled, language_model
from llm_jax.training.program import Program
from llm_jax.training.run import Run


def restore(
    workdir: str | Path, assignments: list[str] | None = None, modules: tuple[str, ...] = ()
) -> tuple[Program, Tokenizer, Any]:
    """The program of a run's experiment, its tokenizer, and its newest parameters (their average, if it keeps one).

    Args:
      assignments: settings to change first, as of `--set`; the parameters must still fit.
      modules: names of user modules that the manifest may name.

    Raises:
      InputError: there is no run, it is damaged, or it has no checkpoint yet.
    """
    keep_compiled()
    run = Run.existing(workdir)
    experiment = Experiment.of(run.manifest, modules).set(assignments or [], modules)
    tokenizer = load_tokenizer(run.tokenizer)
    experiment = fill(experiment, tokenizer)
    layout: Any = experiment.layout
    program = Program(experiment, layout.mesh())
    name = "average" if experiment.ema else "params"
    with Checkpoints(run.checkpoints, run.manifest) as checkpoints, jax.set_mesh(program.mesh):
        params = checkpoints.restore_params(getattr(program.template, name), name).state
    return program, tokenizer, params


def load(workdir: str | Path, modules: tuple[str, ...] = ()) -> LanguageModel:
    """The language model of a run, to generate and score with.

    Raises:
      InputError: there is no run, it is damaged, or it has no checkpoint yet.
    """
    program, tokenizer, params = restore(workdir, None, modules)
    return language_model(program.experiment, tokenizer, params)
