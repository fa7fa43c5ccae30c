"""Checkpoints: saved in the background, sealed with checksums, and trusted only after these were checked.

A checkpoint is a folder named by its step:

    00000300/state/...          the arrays, by Orbax (https://orbax.readthedocs.io)
    00000300/manifest.json      the experiment: enough to rebuild the model without the rest of the run
    00000300/data.json          where the data stood
    00000300/metrics.json       what was last measured, and at which step
    00000300/beside.json        the hashes of the run's tokenizer and of what is frozen
    00000300/checksums.sha256   the hash of every file above

It is written under another name (`.saving`), sealed, and then renamed: that is the commit. So whatever has a
checkpoint's name was whole once, and any later damage shows. It is removed by renaming first too (`.deleting`): what
still has its name after it was read was whole while it was read, so a run can be opened while it trains.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from llm_jax.core.errors import InputError, nearest
from llm_jax.core.files import delete, parse_json, unused
from llm_jax.runs.checkpoint_files import checkpoint_path, half_saved, in_use, put_aside, saved_steps, unfinished
from llm_jax.runs.checksums import damage, seal, sync
from llm_jax.runs.disk import space_for
from llm_jax.runs.metrics import plain
from llm_jax.runs.pytrees import held_logs, load, save_async

Found = TypeVar("Found")
UNKNOWN, NONE = (1, -math.inf), (2, 0.0)  # ranks: the first whose step is not known, and that of no metric
ATTEMPTS = 20  # at reading a checkpoint that a trainer has not removed meanwhile


class Removed(Exception):
    """A trainer removed the checkpoint while it was being read: what was read of it means nothing."""


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
      keep_best: how many of the best are kept besides, among those that were evaluated at their own step.
      best_by: the metric that they are the best by: of its lowest values for `best_mode` "min", else of its highest.
      belongs: asked before a checkpoint is loaded, with its step, its manifest and what it was saved beside; it raises
        InputError where these are not of the run as it is now.
      note: where the lines go that tell of a damaged checkpoint, or of one that cannot be removed; standard error by
        default.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        best_by: str = "loss",
        best_mode: Literal["min", "max"] = "min",
        belongs: Callable[[int, Mapping[str, Any], Mapping[str, Any]], None] = lambda step, manifest, beside: None,
        note: Callable[[str], None] = _say,
    ):
        if keep_last < 1:
            raise InputError(f"at least 1 checkpoint must be kept, not {keep_last}")
        self.folder = folder.absolute()
        self.manifest = dict(manifest)
        self.keep_last, self.keep_best = keep_last, keep_best
        self.best_by, self.best_mode = best_by, best_mode
        self._shown = folder
        self._belongs = belongs
        self._note = note
        self._sound: set[int] = set()  # checked, or saved by ourselves
        self._damaged: set[int] = set()
        self._stuck: set[str] = set()  # what could not be removed, and was told
        self._worker = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def steps(self) -> list[int]:
        """The steps of all checkpoints that were finished, sound or not, oldest first."""
        return saved_steps(self.folder)

    # ----------------------------------------------------------------------------------------------------------- saving

    def save(
        self, step: int, state: Any, data: Mapping[str, Any], metrics: Mapping[str, float | None],
        beside: Mapping[str, str | None] | None = None,
    ) -> None:  # fmt: skip
        """Begins to save, and returns as soon as `state` may be donated. If this step was saved, that stays as it is.

        Args:
          state: a pytree of arrays.
          data: JSON: where the data iterator stands.
          metrics: the latest evaluation, and as `step` that which it is of: without one this step, which is written
            then; None where it is not known.
          beside: the hashes of the run's files that it depends on.

        Raises:
          InputError: it cannot be written, now or while the save before was going on (the disk is full, say); older
            checkpoints stay.
        """
        self.wait()
        if step in self._sound and self._path(step).exists():
            return
        measured = {name: plain(value) for name, value in metrics.items()}
        if measured:
            measured.setdefault("step", step)
        contents = {"manifest.json": self.manifest, "data.json": dict(data), "metrics.json": measured}
        contents["beside.json"] = dict(beside or {})
        files = {name: json.dumps(value, indent=2).encode() + b"\n" for name, value in contents.items()}
        partial = self.folder / f"{step:08d}.saving"
        try:
            with self._writing(step):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._discard(partial)  # of a session that was killed
                partial = unused(partial)
                response = save_async(partial, state)
        except BaseException:
            self._discard(partial)
            raise
        self._pending = self._worker.submit(self._finish, step, partial, response, files)

    def wait(self) -> None:
        """Returns when nothing is being saved any more.

        Raises:
          InputError: it could not be written.
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
            with self._writing(step):
                response.result()
                for name, content in files.items():
                    (partial / name).write_bytes(content)
                seal(partial)
                if os.path.lexists(self._path(step)):  # a damaged one, or something else of that name
                    put_aside(self._path(step))
                os.replace(partial, self._path(step))
                sync(self.folder)
        except BaseException:
            self._discard(partial)
            raise
        self._sound.add(step)
        self._damaged.discard(step)
        self._prune()

    def _prune(self) -> None:
        """Removes what need not be kept. What cannot be removed is told once: the checkpoint that was saved stands."""
        steps = [step for step in self.steps() if step not in self._damaged]
        ranked = sorted((self._rank(step), step) for step in steps)
        best = {step for rank, step in ranked[: self.keep_best] if rank < NONE}
        for step in self.steps():
            if step not in best.union(steps[-self.keep_last :]):
                with self._clearing(self._path(step)), in_use(self._path(step), removing=True):
                    put_aside(self._path(step))
        for leftover in unfinished(self.folder):  # of this clearing, and of a session that was killed
            with self._clearing(leftover):
                delete(leftover)

    @contextlib.contextmanager
    def _clearing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            pass  # somebody reads it: it goes after a later save
        except OSError as error:
            if (name := path.name.partition(".")[0]) not in self._stuck:
                self._stuck.add(name)
                reason = error.strerror or error
                self._note(
                    f"{self._shown / path.name} cannot be removed ({reason}) and takes up space: training goes on"
                )

    def _rank(self, step: int) -> tuple[int, float]:
        """Lower is better; without a finite metric of this very step, or with a damaged file, `NONE`.

        Older versions did not write the step that a metric is of, which may be an earlier one: such a metric ranks
        behind all that are known to be of their own step, and decides only where there are none of those.
        """
        try:
            metrics = parse_json((self._path(step) / "metrics.json").read_bytes())
            value, of = float(metrics[self.best_by]), metrics.get("step")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return NONE
        if of not in (step, None) or not math.isfinite(value):
            return NONE
        return int(of is None), value if self.best_mode == "min" else -value

    def _discard(self, partial: Path) -> None:
        for leftover in self.folder.glob(f"{partial.name}*"):
            with contextlib.suppress(OSError):  # it is in nobody's way, and the next clearing tells of it
                delete(leftover)

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            with space_for(self._lost(step)):
                yield
        except OSError as error:
            raise InputError(f"{self._lost(step)}: {error.strerror or error}") from error

    def _lost(self, step: int) -> str:
        kept = self.steps()
        return f"step {step} was not saved in {self._shown}" + (f" (step {kept[-1]} is)" if kept else "")

    def _path(self, step: int) -> Path:
        return checkpoint_path(self.folder, step)

    # -------------------------------------------------------------------------------------------------------- restoring

    def restore(self, template: Any) -> Checkpoint | None:
        """The newest sound checkpoint, laid out as `template` says; None if none was ever finished.

        Args:
          template: the state with a `jax.ShapeDtypeStruct` (with its sharding) for each array.

        Raises:
          InputError: there are checkpoints but none is sound, or the newest holds other arrays than `template`.
        """
        return self._undisturbed(lambda: self._newest(template))

    def _newest(self, template: Any) -> Checkpoint | None:
        step = self._newest_sound(tell_half_saved=True)
        return None if step is None else self._load(step, template, partial=False)

    def restore_params(self, template: Any, name: str = "params", which: str = "newest") -> Checkpoint:
        """The field `name` of the state alone (also of its average).

        Args:
          which: "newest" is the newest sound one, "best" the best by `best_by`; or a step.

        Raises:
          InputError: there is no such checkpoint, it is not sound, or it holds other arrays than `template`.
        """
        return self._undisturbed(lambda: self._params(template, name, which))

    def _params(self, template: Any, name: str, which: str) -> Checkpoint:
        step = self._newest_sound() if which == "newest" else self._chosen(which)
        if step is None:
            raise InputError(f"no checkpoint in {self._shown}: train first")
        found = self._load(step, {name: template}, partial=True)
        return dataclasses.replace(found, state=found.state[name])

    def _undisturbed(self, read: Callable[[], Found]) -> Found:
        """What `read` finds, from the beginning again whenever a trainer removed what it was reading."""
        for _ in range(ATTEMPTS):
            with contextlib.suppress(Removed):
                return read()
        raise InputError(
            f"{self._shown}: a training removes checkpoints faster than they can be read: try again when it has ended, "
            "or train with a higher save_every or keep_last"
        )

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Around whatever reads a checkpoint.

        Raises:
          Removed: it is not there any more, so that errors in between, and results too, are those of its removal.
        """
        before = _identity(self._path(step))
        if before is None:
            raise Removed
        with held_logs() as held, in_use(self._path(step)):
            try:
                yield
            except Exception as error:
                if _identity(self._path(step)) == before:
                    raise
                held.clear()
                raise Removed from error
            if _identity(self._path(step)) != before:
                held.clear()
                raise Removed

    def _chosen(self, which: str) -> int:
        kept = {str(step): step for step in self.steps()}
        measured = {}
        for step in kept.values() if which == "best" else ():
            with self._reading(step):
                rank = self._rank(step)
            if rank < NONE:
                measured[step] = rank
        if which == "best" and kept and not measured:
            raise InputError(
                f"no checkpoint in {self._shown} has its own {self.best_by}, they were saved between evaluations: "
                f"train with save_every a multiple of eval_every, or choose {' or '.join(['newest', *kept])}"
            )
        best = min(measured, key=lambda step: (measured[step], step), default=None)
        if best is not None and measured[best] >= UNKNOWN:
            self._note(
                f"{self._shown}: the checkpoints of an older version do not say which step their {self.best_by} is of: "
                f"taking {best} for the best"
            )
        step = best if which == "best" else kept.get(which)
        if step is None:
            raise InputError(f"no checkpoint {which!r} in {self._shown}: {nearest(which, ['newest', 'best', *kept])}")
        with self._reading(step):
            problem = damage(self._path(step))
        if problem:
            raise InputError(f"checkpoint {step} in {self._shown} is damaged ({problem}): choose another")
        return step

    def _load(self, step: int, template: Any, partial: bool) -> Checkpoint:
        path = self._path(step)
        with self._reading(step):
            saved_beside = path / "beside.json"  # older versions wrote none
            others = json.loads(saved_beside.read_bytes()) if saved_beside.exists() else {}
            self._belongs(step, json.loads((path / "manifest.json").read_bytes()), others)
            state = load(path, template, f"checkpoint {step} in {self._shown}", partial)
            about = {name: json.loads((path / f"{name}.json").read_bytes()) for name in ("data", "metrics", "manifest")}
        return Checkpoint(step, state, **about)

    def _newest_sound(self, tell_half_saved: bool = False) -> int | None:
        """Looks from the newest on, and tells in one line of those that had to be passed over."""
        self.wait()
        found, problems = None, []
        steps = self.steps() or self.steps()  # a listing may miss the only one, renamed while it was made
        for step in reversed(steps):
            with self._reading(step):
                problem = None if step in self._sound else damage(self._path(step))
            if problem is None:
                found = step
                break
            self._damaged.add(step)
            problems.append(f"checkpoint {step} is damaged ({problem})")
        if found is None and problems:
            found_wrong = f"no checkpoint in {self._shown} is sound: {'; '.join(problems)}"
            raise InputError(f"{found_wrong}; delete that folder to start from the beginning")
        saving = sorted(half_saved(self.folder), reverse=True) if tell_half_saved else []
        problems += [f"checkpoint {step} is only half saved" for step in saving if found is None or step > found]
        if problems:
            then = "there is no other, so from the beginning" if found is None else f"using checkpoint {found}"
            self._note(f"{self._shown}: {'; '.join(problems)}: {then}")
        if found is not None:
            self._sound.add(found)
        return found


def _identity(path: Path) -> tuple[int, int] | None:
    """Which folder it is that has this name now; None if none has."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None
