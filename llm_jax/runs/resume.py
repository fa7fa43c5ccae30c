"""How an experiment goes on in the folder of its run, where its number of steps is another than before."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from llm_jax.core.errors import InputError
from llm_jax.core.files import user_path
from llm_jax.experiment import Experiment
from llm_jax.runs.checkpoint_files import saved_steps
from llm_jax.runs.folder import Run

COMPARED = 64  # steps at which two schedules are compared


def resumed(experiment: Experiment, workdir: str | Path) -> tuple[Experiment, str]:
    """The experiment with the schedule of the run in `workdir`, and what to say of it ("": nothing has changed).

    A run keeps the schedule that it began with, whatever its new number of steps, unless `schedule_steps` says another.

    Raises:
      InputError: the run is beyond the experiment's last step.
    """
    saved = saved_steps(user_path(workdir) / "checkpoints")
    if not saved:
        return experiment, ""
    before, newest, steps = Run.existing(workdir).manifest, max(saved), experiment.steps
    if steps < newest:
        raise InputError(
            f"{workdir} is at step {newest}, beyond steps={steps}, and is left as it is: set steps={newest} or more, "
            "or use another --workdir"
        )
    old_steps, old = before.get("steps"), before.get("schedule_steps") or before.get("steps")
    if type(old) is not int:  # a damaged manifest, of which opening the run tells
        return experiment, ""
    asked = experiment.schedule_steps
    new = asked or old
    experiment = experiment.override({"schedule_steps": None if new == steps else new})
    if (steps in (newest, old_steps) and asked is None) or not _differ(experiment, old, asked or steps, newest):
        return experiment, ""
    begins, ends = _rate(experiment, newest, new), _rate(experiment, steps - 1, new)
    rates = f"{begins:.4g} in step {newest + 1}, {ends:.4g} in the last"
    if asked:
        was = _rate(experiment, newest, old)
        return experiment, (
            f"schedule_steps={new}, before {old}: the learning rate is {rates}; by the old schedule it would be "
            f"{was:.4g} in step {newest + 1}"
        )
    other = _rate(experiment, newest, steps)
    return experiment, (
        f"steps={steps}, before {old_steps}: the learning rate keeps its schedule of {old} steps: {rates}. For one of "
        f"{steps} steps set schedule_steps={steps}: {other:.4g} in step {newest + 1}"
    )


def _differ(experiment: Experiment, one: int, other: int, first: int) -> bool:
    """Whether schedules of so many steps give other rates in what is left of the training."""
    left = max(experiment.steps - first, 1)
    places = {first + left * i // COMPARED for i in range(COMPARED)}
    return any(_rate(experiment, step, one) != _rate(experiment, step, other) for step in places)


def _rate(experiment: Experiment, step: int, steps: int) -> float:
    optimizer = experiment.optimizer
    return float(optimizer.rate(jnp.int32(step), steps))
