"""Training on from another run: its model, tokenizer and parameters are where an experiment with `init_from` begins.

So are the models of other runs that an experiment asks (`Pretrained`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from llm_jax.core import parts
from llm_jax.core.errors import InputError
from llm_jax.core.files import user_path
from llm_jax.core.parts import conform, show
from llm_jax.core.user_modules import user_modules
from llm_jax.data.documents import Rendering
from llm_jax.data.pipeline import Data
from llm_jax.engine.restore import open_checkpoint
from llm_jax.engine.step import Program, TrainState, fill
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.models.pretrained import Pretrained
from llm_jax.optim.trainable import leaves, tree
from llm_jax.runs.checkpoint_files import saved_steps
from llm_jax.runs.fingerprints import run_tokenizer
from llm_jax.runs.folder import Run
from llm_jax.text.kept import Kept
from llm_jax.text.tokenizer import Tokenizer

SHOWN = 4  # parameters that a warning names


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
    experiment = _settled(experiment, None if begun is None else _experiment(begun))
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


def _settled(asking: Any, known: Any) -> Any:
    """Each `Pretrained` in it with the model of its run, which `known` may have already."""
    found = {p.run: p for _, p in parts.walk(known) if isinstance(p, Pretrained) and not isinstance(p.model, Inherited)}

    def settle(part: Any) -> Any:
        if not isinstance(part, Pretrained) or not isinstance(part.model, Inherited):
            return part
        return found.get(part.run) or dataclasses.replace(part, model=_opened(Run.existing(part.run)).experiment.model)

    return parts.transform(asking, settle)


def equip(finished: Finished, program: Program) -> Finished:
    """With the models of other runs that its report asks, those that the run itself does not keep.

    Raises:
      InputError: there is no such run, or it reads texts in another way.
    """
    report = _settled(finished.experiment.report, finished.experiment)
    kept = (finished.frozen or {}).get("pretrained", {})
    others = {part.run: part for part in _asked(report) if part.run not in kept}
    opened = {run: _pretrained(program, part) for run, part in others.items()}
    frozen = {**(finished.frozen or {}), "pretrained": kept | opened} if opened else finished.frozen
    experiment = dataclasses.replace(finished.experiment, report=report)
    return dataclasses.replace(finished, experiment=experiment, frozen=frozen)


def _asked(report: Any) -> list[Pretrained]:
    return [part for _, part in parts.walk(report) if isinstance(part, Pretrained)]


def _rendered(experiment: Experiment, before: Rendering) -> Experiment:
    rendering = experiment.data.rendering
    return experiment.override({"data.rendering": rendering.after(before)})


def first_tokenizer(experiment: Experiment) -> Tokenizer:
    """The tokenizer that a training of the experiment begins with: that of `init_from`, or one made of its texts."""
    data = experiment.data
    if experiment.init_from:
        return data.rendering.settled.template.ending(run_tokenizer(Run.existing(experiment.init_from)))
    return data.prepare(experiment.tokenizer)


def begin(program: Program) -> TrainState:
    """The state before the first step: drawn from the seed, or with the parameters of the run of `init_from` (their
    average, if it keeps one; of its newest sound checkpoint). What a model has beyond that run's, a head, is drawn; a
    part that both have there, the pooler of an encoder and of a classifier on it, is that run's.

    Raises:
      InputError: that run has no checkpoint, or other parameters than the experiment's model; or a `Pretrained` model
        reads texts in another way.
    """
    others = {run: _pretrained(program, part) for run, part in program.pretrained.items()}
    for part in _asked(program.experiment.report):  # now, not when the training has ended
        _check_reading(program, Run.existing(part.run))
    if not program.experiment.init_from:
        return program.begin(others=others)
    run = Run.existing(program.experiment.init_from)
    before = _opened(run, program.mesh)
    trunks = _trunks(before, run, program)
    params, _ = open_checkpoint(run, before)
    if trunks == ("",):
        return program.begin(params, others)
    there, drawn = leaves(params), leaves(program.draw())
    come = _places(trunks, _kinds(before.boxed), _kinds(program.boxed))
    if left := there.keys() - come.values():
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        logging.warning("init_from: the model has no place for %s%s", ", ".join(sorted(left)[:SHOWN]), more)
    adopted = {path: jax.numpy.copy(there[come[path]]) if path in come else value for path, value in drawn.items()}
    return program.begin(tree(adopted), others)


def _trunks(before: Program, run: Run, program: Program) -> tuple[str, ...]:
    """The paths at which the parameters of the other run's model go; ("",): the models have the same.

    Raises:
      InputError: they fit nowhere; the message names the first that differs.
    """
    model = program.experiment.model
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


def _places(trunks: Sequence[str], there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """For each parameter that comes from the other run, its path there: one in a trunk, or the like of one there."""
    found = {path: path for path in here if there.get(path) == here[path]}
    return found | {path: path.removeprefix(f"{t}.") for t in trunks for path in here if path.startswith(f"{t}.")}


def _kinds(boxed: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The letters and the shape of each parameter: a head of classes is not one of words, though it be as wide."""
    return {path: (leaf.letters, leaf.value.shape) for path, leaf in leaves(boxed).items()}


def _shapes(boxed: Any) -> dict[str, tuple[int, ...]]:
    return {path: leaf.value.shape for path, leaf in leaves(boxed).items()}


def _pretrained(program: Program, part: Pretrained) -> Any:
    run = Run.existing(part.run)
    _check_reading(program, run)
    params, _ = open_checkpoint(run, _opened(run, program.mesh))
    return jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, program.of_pretrained(part)))


def _check_reading(program: Program, run: Run) -> None:
    """Nothing, if the other run's model knows texts as this run writes them.

    Raises:
      InputError: it has another tokenizer, or another rendering (but for what is learnt).
    """
    alike = "let both begin from the same run (init_from)"
    if program.tokenizer is None or run_tokenizer(run).identity != program.tokenizer.identity:
        raise InputError(f"{run.workdir} has another tokenizer than this run: {alike}")
    there, here = (conform(e.data, Data, "data").rendering.settled for e in (_experiment(run), program.experiment))
    for name in parts.settings(here):
        theirs, ours = getattr(there, name), getattr(here, name)
        if name != "learn" and theirs != ours:
            raise InputError(
                f"{run.workdir} has data.rendering.{name}={show(theirs, whole=True)}, this run "
                f"{show(ours, whole=True)}: {alike}, or set it alike"
            )


def _begun(experiment: Experiment, workdir: str | Path | None) -> Run | None:
    """The run in `workdir`, if it has a checkpoint of a training that began from `init_from`."""
    if workdir is None or not (user_path(workdir) / "manifest.json").exists():
        return None
    run = Run.existing(workdir)
    same = run.manifest.get("init_from") == experiment.init_from
    return run if same and saved_steps(run.checkpoints) else None


def _experiment(run: Run) -> Experiment:
    return Experiment.of(run.manifest, user_modules())


def _opened(run: Run, mesh: Any = None) -> Program:
    """The program of another run, on this mesh, or one of a single device."""
    experiment, tokenizer = _experiment(run), run_tokenizer(run)
    if mesh is None:
        mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    return Program(fill(experiment, tokenizer), mesh, tokenizer)
