"""Training on from another run: its model, tokenizer and parameters are where an experiment with `init_from` begins.

So are the models of other runs that an experiment asks (`Pretrained`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from absl import logging

from llm_jax.core import parts
from llm_jax.core.parts import conform, show
from llm_jax.core.tables import InputError
from llm_jax.data.documents import Rendering
from llm_jax.data.pipeline import Data
from llm_jax.experiment import Experiment, user_modules
from llm_jax.models.inherited import Inherited
from llm_jax.models.model import Model
from llm_jax.models.pretrained import Pretrained
from llm_jax.text.kept import Kept
from llm_jax.text.tokenizer import Tokenizer, load_tokenizer
from llm_jax.training.program import Program, TrainState, fill
from llm_jax.training.restore import open_checkpoint
from llm_jax.training.run import Run
from llm_jax.training.tuning import leaves, tree


def inherit(experiment: Experiment, workdir: str | Path | None = None) -> Experiment:
    """The experiment with what it leaves to other runs: of that which `init_from` names, how texts are written for its
    model, where `rendering` says nothing of it, and the model, where it is `Inherited()`; and each `Pretrained` model.
    Without `init_from` the rendering is settled too, so that every manifest says it.

    Args:
      workdir: of a run that was begun so before: it has all that itself, and the other runs may be gone.

    Raises:
      InputError: there is no such run, or the experiment has a tokenizer of its own.
    """
    asked = any(isinstance(part, Pretrained) for _, part in parts.walk(experiment))
    if not (asked or experiment.init_from):
        return _rendered(experiment, Rendering())
    begun = _begun(experiment, workdir)
    known = {} if begun is None else {p.run: p for _, p in parts.walk(_experiment(begun)) if isinstance(p, Pretrained)}

    def settle(part: Any) -> Any:
        if not isinstance(part, Pretrained) or not isinstance(part.model, Inherited):
            return part
        return known.get(part.run) or dataclasses.replace(part, model=_opened(Run.existing(part.run)).experiment.model)

    experiment = parts.transform(experiment, settle)
    if not experiment.init_from:
        return _rendered(experiment, Rendering())
    if experiment.tokenizer != Kept():
        raise InputError(
            f"init_from brings its tokenizer along: set tokenizer=Kept(), not {show(experiment.tokenizer)}"
        )
    run = begun or Run.existing(experiment.init_from)
    before = _experiment(run)
    experiment = _rendered(experiment, conform(before.data, Data, "data").rendering)
    changes: dict[str, Any] = {}
    known_parts = {} if begun is None else dict(parts.walk(before.model, "model"))
    for path, part in parts.walk(experiment.model, "model"):
        if isinstance(part, Inherited):
            changes[path] = known_parts.get(path, before.model)
    return experiment.override(changes)


def _rendered(experiment: Experiment, before: Rendering) -> Experiment:
    rendering = conform(experiment.data, Data, "data").rendering
    return experiment.override({"data.rendering": rendering.after(before)})


def first_tokenizer(experiment: Experiment) -> Tokenizer:
    """The tokenizer that a training of the experiment begins with: that of `init_from`, or one made of its texts."""
    data: Any = experiment.data
    if experiment.init_from:
        return data.rendering.settled.template.ending(load_tokenizer(Run.existing(experiment.init_from).tokenizer))
    return data.prepare(experiment.tokenizer)


def begin(program: Program) -> TrainState:
    """The state before the first step: drawn from the seed, or with the parameters of the run of `init_from` (their
    average, if it keeps one; of its newest sound checkpoint). What a model has beyond that run's, a head, is drawn.

    Raises:
      InputError: that run has no checkpoint, or other parameters than the experiment's model; or a `Pretrained` model
        reads texts by another tokenizer.
    """
    others = {run: _pretrained(program, run) for run in program.pretrained}
    if not program.experiment.init_from:
        return program.begin(others=others)
    run = Run.existing(program.experiment.init_from)
    before = _opened(run, program.mesh)
    trunks = _trunks(before, run, program)
    params, _ = open_checkpoint(run, before)
    if trunks == ("",):
        return program.begin(params, others)
    there, drawn = leaves(params), leaves(program.draw())
    used = {path.removeprefix(f"{t}.") for t in trunks for path in drawn if path.startswith(f"{t}.")}
    if left := there.keys() - used:
        logging.warning("init_from: the model has no place for %s", ", ".join(sorted(left)))

    def adopted(path: str, value: Any) -> Any:
        trunk = next((t for t in trunks if path.startswith(f"{t}.")), None)
        return value if trunk is None else jax.numpy.copy(there[path.removeprefix(f"{trunk}.")])

    return program.begin(tree({path: adopted(path, value) for path, value in drawn.items()}), others)


def _trunks(before: Program, run: Run, program: Program) -> tuple[str, ...]:
    """The paths at which the parameters of the other run's model go; ("",): the models have the same.

    Raises:
      InputError: they fit nowhere; the message names the first that differs.
    """
    model = conform(program.experiment.model, Model, "model")
    there, here = _shapes(before.boxed), _shapes(program.boxed)
    if there == here:
        return ("",)
    trunks = model.trunks()
    for trunk in trunks:
        prefix = f"{trunk}." if trunk else ""
        inside = {path.removeprefix(prefix): shape for path, shape in here.items() if path.startswith(prefix)}
        names = inside.keys() if trunk else inside.keys() | there.keys()  # a trunk needs no head of the other model's
        if differing := sorted(name for name in names if there.get(name) != inside.get(name)):
            first = differing[0]
            shapes = (
                f"{there.get(first, 'absent')} in {run.workdir}, and {inside.get(first, 'absent')} in this experiment"
            )
            raise InputError(
                f"init_from: parameter {first} is {shapes}: use model=Inherited(), or one that differs less"
            )
    return trunks


def _shapes(boxed: Any) -> dict[str, tuple[int, ...]]:
    return {path: leaf.value.shape for path, leaf in leaves(boxed).items()}


def _pretrained(program: Program, name: str) -> Any:
    run = Run.existing(name)
    if program.tokenizer is None or load_tokenizer(run.tokenizer).identity != program.tokenizer.identity:
        raise InputError(f"{name} has another tokenizer than this run: let both begin from the same run (init_from)")
    params, _ = open_checkpoint(run, _opened(run, program.mesh))
    return jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, program.of_pretrained(name)))


def _begun(experiment: Experiment, workdir: str | Path | None) -> Run | None:
    """The run in `workdir`, if it has a checkpoint of a training that began from `init_from`."""
    if workdir is None or not (Path(workdir) / "manifest.json").exists():
        return None
    run = Run.existing(workdir)
    same = run.manifest.get("init_from") == experiment.init_from
    return run if same and any(run.checkpoints.glob("*")) else None


def _experiment(run: Run) -> Experiment:
    return Experiment.of(run.manifest, user_modules())


def _opened(run: Run, mesh: Any = None) -> Program:
    """The program of another run, on this mesh, or one of a single device."""
    experiment, tokenizer = _experiment(run), load_tokenizer(run.tokenizer)
    if mesh is None:
        mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    return Program(fill(experiment, tokenizer), mesh, tokenizer)
