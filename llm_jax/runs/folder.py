"""The folder of a run: what made it (manifest.json), and where all it leaves behind is kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.files import delete, parse_json, reading, user_path, write_atomically
from llm_jax.core.parts import show
from llm_jax.runs.checkpoint_files import saved_steps
from llm_jax.runs.disk import space_for
from llm_jax.runs.lock import only_writer

MAY_DIFFER = frozenset(
    {
        "steps",
        "schedule_steps",
        "log_every",
        "eval_every",
        "save_every",
        "keep_last",
        "keep_best",
        "best_by",
        "best_mode",
        "patience",
        "layout",
        "report",
        "data.workers",
        "data.evaluation_batches",
        "model.stack.run",
        "model.stack.remat",
    }
)
"""Settings, with all below them, that a resumed run may change without becoming another experiment."""

DEEPEST = 100  # levels of a manifest
SHOWN = 3  # differences that a message lists; the rest are counted


class Run:
    """A workdir: manifest.json, sessions.jsonl, metrics.jsonl, events/, tokenizer/, checkpoints/.

    Some have source/ (the user's own files), completions.jsonl, frozen/ and figures/ too.

    `Run.open` is for the one process that trains (a context manager: it holds the folder's lock), `Run.existing` for
    those that only read.
    """

    def __init__(self, workdir: Path, manifest: dict[str, Any], held: contextlib.ExitStack):
        self.workdir = workdir
        self.manifest = manifest
        self._held = held

    @property
    def metrics(self) -> Path:
        return self.workdir / "metrics.jsonl"

    @property
    def completions(self) -> Path:
        """What a policy said at each evaluation, one JSON object a line."""
        return self.workdir / "completions.jsonl"

    @property
    def sessions(self) -> Path:
        """What made the run, one JSON object a line for each session that trained, or for its import."""
        return self.workdir / "sessions.jsonl"

    @property
    def events(self) -> Path:
        return self.workdir / "events"

    @property
    def tokenizer(self) -> Path:
        return self.workdir / "tokenizer"

    @property
    def has_tokenizer(self) -> bool:
        """Whether it is there, whole: this file of it is written last."""
        return (self.tokenizer / "tokenizer.json").exists()

    @property
    def figures(self) -> Path:
        return self.workdir / "figures"

    @property
    def frozen(self) -> Path:
        return self.workdir / "frozen"

    @property
    def checkpoints(self) -> Path:
        return self.workdir / "checkpoints"

    @classmethod
    def open(cls, workdir: str | Path, manifest: Mapping[str, Any], may_differ: Collection[str] = MAY_DIFFER) -> Run:
        """The run in `workdir`, to be trained: made if absent, else gone on with, its manifest brought up to date.

        Args:
          manifest: the experiment as JSON; its `"name"`, if any, is what messages call the experiment.
          may_differ: paths of settings that need not be those of the run that is there.

        Raises:
          InputError: the folder cannot be written, is in use, is damaged, or another experiment was trained in it.
        """
        workdir, new = user_path(workdir), json.loads(json.dumps(manifest, allow_nan=False))
        held = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            try:
                with space_for(f"{workdir} was not made"):
                    workdir.mkdir(parents=True, exist_ok=True)
                    undo.enter_context(only_writer(workdir))
                    run = cls(workdir, new, held)
                    old = _read_manifest(workdir) if run._begun() else None
                    if old is not None and run._trained():
                        _refuse_other(workdir, old, new, may_differ)
                    elif old != new:  # it failed before its first step, over a setting that has been mended since
                        delete(run.tokenizer)
                    if old != new:
                        write_atomically(workdir / "manifest.json", json.dumps(new, indent=2) + "\n")
                    for folder in (run.events, run.tokenizer, run.checkpoints):
                        folder.mkdir(exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot write in {workdir}: {error.strerror or error}") from None
            held.push(undo.pop_all())
        return run

    @classmethod
    def existing(cls, workdir: str | Path) -> Run:
        """The run in `workdir`, to be read.

        Raises:
          InputError: there is none, or its manifest is damaged.
        """
        workdir = user_path(workdir)
        with reading(workdir):
            found = workdir.is_dir()
        if not found:
            raise InputError(f"no folder {workdir}: train first, or name the --workdir of a run")
        return cls(workdir, _read_manifest(workdir), contextlib.ExitStack())

    def draw(self, name: str, figure: bytes) -> Path:
        """Where the figure is kept."""
        with space_for(f"the figure {name} is not in {self.figures}"):
            self.figures.mkdir(exist_ok=True)
            write_atomically(self.figures / name, figure)
        return self.figures / name

    def close(self) -> None:
        """Gives the folder free for others."""
        self._held.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begun(self) -> bool:
        """Whether a run was here before; checkpoints without a manifest are one too, a damaged one."""
        return (self.workdir / "manifest.json").exists() or bool(saved_steps(self.checkpoints))

    def _trained(self) -> bool:
        """Whether there is anything to lose."""
        measured = self.metrics.exists() and self.metrics.stat().st_size > 0
        return measured or bool(saved_steps(self.checkpoints))


def _read_manifest(workdir: Path) -> dict[str, Any]:
    path = workdir / "manifest.json"
    try:
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{workdir} is not the folder of a run: it has no manifest.json") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or _deep(found):
        raise InputError(f"{path} is damaged: copy that of the newest checkpoint there, or use another --workdir")
    return found


def _deep(manifest: Any) -> bool:
    """Whether it is nested as no experiment is, and too deeply to be walked."""
    level = [manifest]
    for _ in range(DEEPEST):
        children = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for inside in children for value in inside if isinstance(value, dict | list)]
        if not level:
            return False
    return True


def _refuse_other(workdir: Path, old: Mapping[str, Any], new: Mapping[str, Any], may_differ: Collection[str]) -> None:
    if old.get("name") != new.get("name"):
        raise InputError(f"{workdir} was made by {old.get('name')}, not by {new.get('name')}: use another --workdir")
    differing = [
        (path, was, now)
        for path, was, now in differences(old, new)
        if not any(path == free or path.startswith(f"{free}.") for free in may_differ)
    ]
    if not differing:
        return
    listed = ", ".join(f"{path}={show(was)}, not {show(now)}" for path, was, now in differing[:SHOWN])
    more = f", and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    by = f"by {old['name']} " if old.get("name") else ""
    raise InputError(f"{workdir} was made {by}with {listed}{more}: use another --workdir or the same settings")


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The paths at which two manifests differ, with both values. Of a part that was replaced, only the part itself."""
    if isinstance(old, dict) and isinstance(new, dict) and old.get("part") == new.get("part"):
        names = [*old, *(name for name in new if name not in old)]
        pairs = [(name, old.get(name), new.get(name)) for name in names]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), was, now) for i, (was, now) in enumerate(zip(old, new, strict=True))]
    else:
        if old != new or type(old) is not type(new):
            yield path, old, new
        return
    for name, was, now in pairs:
        yield from differences(was, now, f"{path}.{name}" if path else name)
