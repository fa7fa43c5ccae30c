"""Checkpoints: saved in the background, sealed with checksums, and trusted only after these were checked.

A checkpoint is a folder named by its step:

    00000300/state/...          the arrays, by Orbax (https://orbax.readthedocs.io)
    00000300/manifest.json      the experiment: enough to rebuild the model without the rest of the run
    00000300/data.json          where the data stood
    00000300/metrics.json       what was last measured
    00000300/checksums.sha256   the hash of every file above

It is written under another name (`.saving`), sealed, and then renamed: that is the commit. So whatever has a
checkpoint's name was whole once, and any later damage shows. It is removed by renaming first too (`.deleting`).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import logging
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from llm_jax.core.tables import InputError, nearest
from llm_jax.training.checksums import damage, seal, sync
from llm_jax.training.disk import space_for
from llm_jax.training.metrics import plain


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was restored. `state` is the whole state, or the one field of it that was asked for."""

    step: int
    state: Any
    data: dict[str, Any]
    metrics: dict[str, Any]
    manifest: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run. Only the process that holds the run may save. A context manager: its end waits.

    Attributes:
      keep_last: how many of the newest are kept.
      keep_best: how many of those with the lowest metric `best_by` are kept besides.
      note: where the one line goes that tells of a damaged checkpoint; standard error by default.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_by: str = "loss",
        note: Callable[[str], None] = _say,
    ):
        if keep_last < 1:
            raise InputError(f"at least 1 checkpoint must be kept, not {keep_last}")
        self.folder = folder.absolute()
        self.manifest = dict(manifest)
        self.keep_last, self.keep_best, self.best_by = keep_last, keep_best, best_by
        self._shown = folder
        self._note = note
        self._sound: set[int] = set()  # checked, or saved by ourselves
        self._damaged: set[int] = set()
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def steps(self) -> list[int]:
        """The steps of all checkpoints that were finished, sound or not, oldest first."""
        return sorted(int(path.name) for path in self.folder.glob("*") if path.name.isdigit())

    # ----------------------------------------------------------------------------------------------------------- saving

    def save(self, step: int, state: Any, data: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Begins to save, and returns as soon as `state` may be donated. If this step was saved, that stays as it is.

        Args:
          state: a pytree of arrays.
          data: JSON: where the data iterator stands.
          metrics: the latest evaluation.

        Raises:
          InputError: the disk is full, now or while the save before was going on; older checkpoints stay.
        """
        self.wait()
        if step in self._sound and self._path(step).exists():
            return
        partial = self.folder / f"{step:08d}.saving"
        measured = {name: plain(value) for name, value in metrics.items()}
        contents = {"manifest.json": self.manifest, "data.json": dict(data), "metrics.json": measured}
        files = {name: json.dumps(value, indent=2).encode() + b"\n" for name, value in contents.items()}
        try:
            with space_for(self._lost(step)):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._discard(partial)  # of a session that was killed
                ocp = _orbax()
                with _context(ocp):
                    response = ocp.save_async(partial, state)
        except BaseException:
            self._discard(partial)
            raise
        self._pending = self._worker.submit(self._finish, step, partial, response, files)

    def wait(self) -> None:
        """Returns when nothing is being saved any more.

        Raises:
          InputError: the disk was full.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    def _finish(self, step: int, partial: Path, response: Any, files: Mapping[str, bytes]) -> None:
        """In the background: waits for Orbax, seals, commits, and removes what need not be kept."""
        try:
            with space_for(self._lost(step)):
                response.result()
                for name, content in files.items():
                    (partial / name).write_bytes(content)
                seal(partial)
                if self._path(step).exists():
                    self._remove(step)
                os.replace(partial, self._path(step))
                sync(self.folder)
        except BaseException:
            self._discard(partial)
            raise
        self._sound.add(step)
        self._damaged.discard(step)
        self._prune()

    def _prune(self) -> None:
        steps = [step for step in self.steps() if step not in self._damaged]
        ranked = sorted((self._rank(step), step) for step in steps)
        best = {step for rank, step in ranked[: self.keep_best] if rank < math.inf}
        for step in self.steps():
            if step not in best.union(steps[-self.keep_last :]):
                self._remove(step)
        for pattern in ("*.saving*", "*.deleting"):  # left by a session that was killed
            for leftover in self.folder.glob(pattern):
                shutil.rmtree(leftover)

    def _rank(self, step: int) -> float:
        """Lower is better; without a finite metric, or with a damaged file, infinity."""
        try:
            value = float(json.loads((self._path(step) / "metrics.json").read_bytes())[self.best_by])
        except (OSError, ValueError, KeyError, TypeError):
            return math.inf
        return value if math.isfinite(value) else math.inf

    def _remove(self, step: int) -> None:
        doomed = self.folder / f"{step:08d}.deleting"
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(self._path(step), doomed)
        shutil.rmtree(doomed)

    def _discard(self, partial: Path) -> None:
        for leftover in self.folder.glob(f"{partial.name}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _lost(self, step: int) -> str:
        kept = self.steps()
        return f"step {step} was not saved in {self._shown}" + (f" (step {kept[-1]} is)" if kept else "")

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    # -------------------------------------------------------------------------------------------------------- restoring

    def restore(self, template: Any) -> Checkpoint | None:
        """The newest sound checkpoint, laid out as `template` says; None if none was ever finished.

        Args:
          template: the state with a `jax.ShapeDtypeStruct` (with its sharding) for each array.

        Raises:
          InputError: there are checkpoints but none is sound, or the newest holds other arrays than `template`.
        """
        step = self._newest_sound()
        return None if step is None else self._load(step, template, partial=False)

    def restore_params(self, template: Any, name: str = "params", which: str = "newest") -> Checkpoint:
        """The field `name` of the state alone (also of its average).

        Args:
          which: "newest" is the newest sound one, "best" the one with the lowest `best_by`; or a step.

        Raises:
          InputError: there is no such checkpoint, it is not sound, or it holds other arrays than `template`.
        """
        step = self._newest_sound() if which == "newest" else self._chosen(which)
        if step is None:
            raise InputError(f"no checkpoint in {self._shown}: train first")
        found = self._load(step, {name: template}, partial=True)
        return dataclasses.replace(found, state=found.state[name])

    def _chosen(self, which: str) -> int:
        kept = {str(step): step for step in self.steps()}
        measured = {step: rank for step in kept.values() if (rank := self._rank(step)) < math.inf}
        # of equal ones the first: a checkpoint between two evaluations repeats what was measured before it
        best = min(measured, key=lambda step: (measured[step], step), default=max(kept.values(), default=None))
        step = best if which == "best" and best is not None else kept.get(which)
        if step is None:
            raise InputError(f"no checkpoint {which!r} in {self._shown}: {nearest(which, ['newest', 'best', *kept])}")
        if problem := damage(self._path(step)):
            raise InputError(f"checkpoint {step} in {self._shown} is damaged ({problem}): choose another")
        return step

    def _load(self, step: int, template: Any, partial: bool) -> Checkpoint:
        path, ocp = self._path(step), _orbax()
        saved = _arrays(ocp.metadata(path).metadata)
        _compare(f"checkpoint {step} in {self._shown}", saved, _arrays(template), partial)
        with _context(ocp, partial):
            state = ocp.load(path, jax.tree.map(_placed, template))
        about = {name: json.loads((path / f"{name}.json").read_bytes()) for name in ("data", "metrics", "manifest")}
        return Checkpoint(step, state, **about)

    def _newest_sound(self) -> int | None:
        """Looks from the newest on, and tells in one line of those that had to be passed over."""
        self.wait()
        found, problems = None, []
        for step in reversed(self.steps()):
            problem = None if step in self._sound else damage(self._path(step))
            if problem is None:
                found = step
                break
            self._damaged.add(step)
            problems.append(f"checkpoint {step} is damaged ({problem})")
        if found is None and problems:
            found_wrong = f"no checkpoint in {self._shown} is sound: {'; '.join(problems)}"
            raise InputError(f"{found_wrong}; delete that folder to start from the beginning")
        saving = sorted({int(path.name.partition(".")[0]) for path in self.folder.glob("*.saving*")}, reverse=True)
        problems += [f"checkpoint {step} is only half saved" for step in saving if found is None or step > found]
        if problems:
            then = "there is no other, so from the beginning" if found is None else f"using checkpoint {found}"
            self._note(f"{self._shown}: {'; '.join(problems)}: {then}")
        if found is not None:
            self._sound.add(found)
        return found


@functools.cache
def _orbax() -> Any:
    """Imported late: it takes a second or two."""
    from orbax.checkpoint import v1 as ocp

    # Its threads log every error, with a traceback, that `result()` raises anyway.
    logging.getLogger("absl").addFilter(lambda record: "_SignalingThread.run() raised" not in record.getMessage())
    return ocp


def _context(ocp: Any, partial: bool = False) -> Any:
    context = ocp.Context()
    context.array.saving.use_compression = False  # trained weights shrink by 8%, for several times the processor's time
    context.pytree.loading.partial_load = partial
    return context


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """A template without a sharding is for one device; Orbax would take that of the saving machine, and warn."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _arrays(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and type of each array by its path, which is the same for a field, a key and an index."""

    def word(key: Any) -> str:
        return str(next(getattr(key, a) for a in ("name", "key", "idx") if hasattr(key, a)))

    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(map(word, path)): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}


def _compare(what: str, saved: Mapping[str, Any], wanted: Mapping[str, Any], partial: bool) -> None:
    for name, (shape, dtype) in wanted.items():
        if name not in saved:
            field, fields = name.partition(".")[0], {path.partition(".")[0] for path in saved}
            raise InputError(f"{what} has no {name!r}" + ("" if field in fields else f": {nearest(field, fields)}"))
        if saved[name][0] != shape:
            raise InputError(f"{what} has {name} of shape {saved[name][0]}, not {shape}")
        if saved[name][1] != dtype and not partial:
            raise InputError(f"{what} has {name} of type {saved[name][1]}, not {dtype}")
    if not partial and (surplus := [name for name in saved if name not in wanted]):
        raise InputError(f"{what} has {surplus[0]!r}, which is not in this experiment's state")
