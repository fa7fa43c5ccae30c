"""An experiment: a frozen tree of parts that says all there is to say about a training.

Experiments live in files: `experiments/NAME.py`, or a file of the user's own, given by its path. The file's docstring
begins with its question; its function `experiment()` returns the experiment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm_jax.core import parts, serialization
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, Part, Rate, Seed, Size
from llm_jax.core.user_modules import experiment_path, list_names, load_module
from llm_jax.data.pipeline import Data
from llm_jax.models.model import Model
from llm_jax.objectives.objective import Objective
from llm_jax.optim.optimizers import Optimizer
from llm_jax.optim.precision import Precision
from llm_jax.optim.trainable import TrainAll, Tuning
from llm_jax.parallel.layout import Layout
from llm_jax.text.recipes import TokenizerRecipe

if TYPE_CHECKING:
    from llm_jax.engine.trained import Finished


@dataclasses.dataclass
class Finding:
    """Lines for people, numbers by name, and figures (PNG) by the name of their file.

    `failed`: the report cannot be made, which is all that the line says.
    """

    lines: list[str]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    figures: dict[str, bytes] = dataclasses.field(default_factory=dict)
    failed: bool = False


class Report(Part):
    """`report(finished) -> Finding`."""

    def check(self, planned: Finished) -> None:
        """Checks that the report can be made of this run, as far as that is known before its first step.

        Args:
          planned: the run as it will be when it is finished, but for `params` and `frozen`, which are None.

        Raises:
          InputError: it cannot; the message names the setting to change.
        """

    def __call__(self, finished: Finished) -> Finding:
        """What it finds.

        Raises:
          InputError: it cannot be made. The other reports are made all the same.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Part):
    """What is trained, on what, how, and for how long. Every field can be overridden by its path.

    One step is one batch; `microbatches` computes it in that many pieces, with the same result in less memory.
    `ema` keeps an average of the parameters with that decay (0: none), which is what evaluation and sampling then use.
    A step whose loss, gradient or update is not finite is skipped: it changes neither the parameters nor what the
    optimiser and `ema` keep. The run stops after `patience` such steps in a row.
    Of checkpoints the newest `keep_last` stay, and the best `keep_best` by the validation metric `best_by`, among those
    that were evaluated at their own step. `best_mode` says whether its lowest ("min") or highest ("max") value is best;
    None: as is known of `loss`, `perplexity`, `bits_per_byte`, `accuracy` and `reward`.
    The learning rate's schedule runs over `schedule_steps` (None: `steps`; a resumed run keeps what it had).
    `init_from` is the folder of a run to train on from: with its parameters and tokenizer, and what `data.rendering`
    leaves unsaid. `model` is `Inherited()` then, or one that has the same parameters, and `tokenizer` is `Kept()`.
    """

    name: str = ""
    model: Model
    tokenizer: TokenizerRecipe
    data: Data
    objective: Objective
    optimizer: Optimizer
    layout: Layout
    precision: Precision
    steps: Size
    schedule_steps: Size | None = None  # over which the learning rate's schedule runs
    seed: Seed = 0
    microbatches: Size = 1
    ema: Rate = 0.0
    patience: Size = 10
    log_every: Size = 10
    eval_every: Size = 100
    save_every: Size = 100
    keep_last: Size = 2
    keep_best: Count = 1
    best_by: str = "loss"
    best_mode: Literal["min", "max"] | None = None
    tuning: Tuning = TrainAll()  # which parameters are trained
    report: tuple[Report, ...] = ()  # what is measured and shown when the training has ended
    init_from: str = ""

    def __post_init__(self) -> None:
        for name in parts.settings(self):
            parts.conform(getattr(self, name), parts.types_of(type(self))[name], name)

    def override(self, changes: Mapping[str, Any]) -> Experiment:
        """The experiment with the settings at these paths replaced: `{"model.stack.repeats": 4}`.

        Raises:
          InputError: there is no such path, or a value is of another type or another family of parts.
        """
        changed = self
        for path, value in changes.items():
            changed = parts.override(changed, path, value)
        return changed

    def set(self, assignments: list[str], modules: tuple[str, ...] = ()) -> Experiment:
        """`override` with what a user typed: `["steps=100", "model.positions=Alibi()"]`."""
        return assign(self, assignments, modules)

    def manifest(self) -> dict[str, Any]:
        """The experiment as JSON, enough to build it again without its file."""
        manifest = serialization.to_json(self)
        assert isinstance(manifest, dict)
        return manifest

    @staticmethod
    def of(manifest: Any, modules: tuple[str, ...] = ()) -> Experiment:
        """The experiment of a manifest; parts may be of this project or of the user's own `modules`.

        Raises:
          InputError: the manifest names anything else, or does not fit.
        """
        found = serialization.from_json(manifest, modules)
        if not isinstance(found, Experiment):
            raise InputError("the manifest is not of an experiment")
        return found


def assign(part: Any, assignments: list[str], modules: tuple[str, ...] = ()) -> Any:
    """`part` with the settings replaced that a user typed as `path=value`.

    Raises:
      InputError: as `Experiment.override`.
    """
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set={text}: write --set=path=value, such as --set=steps=100")
        part = parts.override(part, path.strip(), serialization.parse(value, modules))
    return part


def get(name: str | Path) -> Experiment:
    """The experiment with this name, or of the user's file at this path.

    Raises:
      InputError: there is none, or its file is no experiment's.
    """
    module = load_module(experiment_path(str(name)))
    make = getattr(module, "experiment", None)
    if not callable(make):
        raise InputError(f"{name} has no function experiment()")
    made = make()
    if not isinstance(made, Experiment):
        raise InputError(f"{name}: experiment() must return an Experiment, not {type(made).__name__}")
    return dataclasses.replace(parts.check(made), name=str(name) if name in list_names() else Path(name).stem)
