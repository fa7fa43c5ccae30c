"""Measuring a model on held-out data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from llm_jax.core.errors import InputError
from llm_jax.engine.step import Program
from llm_jax.experiment import Experiment
from llm_jax.parallel.layout import place

Batches = Iterable[Mapping[str, np.ndarray]]


def evaluate(
    program: Program, params: Any, batches: Batches | Callable[[Program, Any, Any], Batches], frozen: Any = None
) -> dict[str, float]:
    """Loss (nats a target), perplexity, bits per byte and accuracy over all `batches`.

    Args:
      params: those that are trained, of the program's state.
      batches: or what makes them of the program, `params` and `frozen`, where they depend on the model.
      frozen: of the state too; None stands for what the program's run keeps, or begins with.

    Raises:
      InputError: nothing in them has a weight.
    """
    totals: dict[str, float] = {}
    with jax.set_mesh(program.mesh):
        if frozen is None and (frozen := program.frozen) is None:
            frozen = program.freeze(params)
        for batch in batches(program, params, frozen) if callable(batches) else batches:
            sums = program.measure(params, frozen, place(dict(batch), program.mesh))
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
    objective = program.experiment.objective
    return means(totals, objective.likelihood)


def means(sums: Mapping[str, Any], likelihood: bool = True) -> dict[str, float]:
    """Metrics by their standard names from an objective's sums.

    Any sum `x` is divided by `x_weight` where there is one (of other things than the loss: rows, pairs), else by
    `weight`. `likelihood` says whether the loss is one of data, so that perplexity and bits per byte mean something:
    they are of the sum `cross_entropy` where the loss is another.

    Raises:
      InputError: the weight is 0: nothing was measured.
    """
    weight = float(sums["weight"])
    if weight == 0:
        raise InputError(
            "nothing to learn: every loss weight is 0 (does the data have answers, and do the rows hold them?)"
        )
    loss = float(sums["loss"]) / weight
    found = dict(loss=loss)
    if likelihood:
        nats = float(sums.get("cross_entropy", sums["loss"]))
        found["perplexity"] = math.exp(min(nats / weight, 700.0))
        if float(sums.get("bytes", 0)) > 0:
            found["bits_per_byte"] = nats / math.log(2) / float(sums["bytes"])
    for name in sums.keys() - OWN:
        if not name.endswith(WEIGHT) and (divisor := float(sums.get(f"{name}{WEIGHT}", weight))) > 0:
            found[NAMES.get(name, name)] = float(sums[name]) / divisor
    return dict(sorted(found.items(), key=lambda item: ORDER.get(item[0], len(ORDER))))


def best_mode(experiment: Experiment) -> Literal["min", "max"]:
    """Whether the lowest or the highest value of `best_by` is the best.

    Raises:
      InputError: the metric does not say so by its name, nor the experiment.
    """
    mode = experiment.best_mode or MODES.get(experiment.best_by)
    if mode is None:
        raise InputError(
            f"best_by={experiment.best_by!r}: say whether its lowest or its highest value is the best, with "
            "best_mode='min' or best_mode='max'"
        )
    return mode


MODES: Mapping[str, Literal["min", "max"]] = {
    "loss": "min", "perplexity": "min", "bits_per_byte": "min", "accuracy": "max", "reward": "max",
}  # fmt: skip
WEIGHT = "_weight"
OWN = {"weight", "loss", "bytes"}
NAMES = dict(correct="accuracy")
ORDER = {name: place for place, name in enumerate(("loss", "perplexity", "bits_per_byte", "accuracy"))}
