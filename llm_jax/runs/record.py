"""What made a run: a line of sessions.jsonl for each session that trained it, and the user's own files as they were."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from llm_jax.core.errors import InputError
from llm_jax.core.files import cache_folder, parse_json, read_json_lines, reading, user_path, write_atomically
from llm_jax.core.parts import ROOT
from llm_jax.core.user_modules import load_module, module_name, user_sources
from llm_jax.experiment import Experiment
from llm_jax.runs.checkpoint_files import checkpoint_path, saved_steps
from llm_jax.runs.disk import append_lines, space_for
from llm_jax.runs.folder import Run


def record(run: Run, step: int) -> None:
    """Adds a line for a session that begins after `step`.

    It has the date, the version of this project with its git commit and whether that was clean (None where it is no
    checkout), the packages, the device, the command, the folder it was given in, the folder of downloaded files if one
    was named, and the user's files that the experiment needs, of which `source/` has copies.
    """
    data = os.environ.get("LLM_JAX_DATA")
    session = dict(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), step=step, version=_version(),
        git=_git(), python=platform.python_version(), packages=_packages(), device=_device(),
        command=shlex.join(sys.orig_argv), folder=os.getcwd(),
        data_dir=str(user_path(data).absolute()) if data else None,
    )  # fmt: skip
    with space_for(f"the record of this session is not in {run.sessions}"):
        line = json.dumps(session | dict(files=_files(run)))
        append_lines(run.sessions, f"{line}\n".encode())


def sessions(run: Run) -> list[dict[str, Any]]:
    """What `record` wrote, oldest first.

    Raises:
      InputError: the file is damaged.
    """
    return read_json_lines(run.sessions) if run.sessions.exists() else []


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What the folder of a run says of it.

    Attributes:
      copies: of the user's own files, which were run now.
      folder: the current folder of its last session; "" where that is not known.
      data_dir: where that session was told to look for downloaded files; "" for nowhere.
    """

    experiment: Experiment
    copies: list[str]
    folder: str
    data_dir: str


def recorded(workdir: str | Path, modules: tuple[str, ...] = ()) -> Recorded:
    """The experiment of a run, from its folder alone, once the copies of the user's own files were run.

    A copy is run only if this user ran a file of that content before, on this machine: a folder may be a stranger's.

    Args:
      modules: names of the user's modules that are loaded already.

    Raises:
      InputError: there is no run, it was not trained but imported, or it needs a file that was not run here.
    """
    run = Run.existing(workdir)
    if _imported(run):
        again = shlex.join(["train", "NAME", f"--set=init_from={workdir}", "--workdir=ANOTHER"])
        raise InputError(f"{workdir} was imported: {again}")
    copies = []
    last = next(iter(reversed(sessions(run))), {"files": []})
    try:
        files = [(run.workdir / file["copy"], Path(file["path"])) for file in last["files"]]
        kept = run.workdir.resolve() / "source"
        if not all(copy.resolve().is_relative_to(kept) for copy, _ in files):
            raise InputError(f"{run.sessions} is damaged: its last line names copies of files that are not in source/")
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{run.sessions} is damaged: its last line does not name the files of its session") from None
    for copy, path in files:
        if module_name(path) in modules:
            continue
        with reading(copy):
            content = copy.read_bytes()
        if not os.path.exists(_ran(content)):
            raise InputError(
                f"{run.workdir} was made with a file that was not run here before: read {copy}, and pass "
                f"{shlex.quote(f'--modules={copy}')} if you trust it"
            )
        load_module(path, content)
        copies.append(str(copy))
    experiment = Experiment.of(run.manifest, (*modules, *map(module_name, copies)))
    return Recorded(experiment, copies, *(str(last.get(name) or "") for name in ("folder", "data_dir")))


@contextlib.contextmanager
def from_its_folder(experiment: Experiment, workdir: str | Path, folder: str) -> Iterator[None]:
    """Around the training of a run whose last session was given in `folder`, which its relative paths may be of.

    Raises:
      InputError: something failed; where a path of the experiment is there and not here, the message says so.
    """
    try:
        yield
    except InputError as error:
        paths = [text for text in _texts(experiment.manifest()) if text and not os.path.exists(text)]
        if folder and any(os.path.exists(os.path.join(folder, path)) for path in paths):
            raise InputError(f"{error}; {workdir} was trained in {folder}: run it there") from error
        raise


def _imported(run: Run) -> bool:
    """Whether its one checkpoint is that of an import: it has no place in the data, and no more than the parameters."""
    if saved_steps(run.checkpoints) != [0]:
        return False
    with contextlib.suppress(OSError, ValueError):  # a damaged one is told of when it is loaded
        return parse_json((checkpoint_path(run.checkpoints, 0) / "data.json").read_bytes()) == {}
    return False


def _texts(manifest: Any) -> Iterator[str]:
    if isinstance(manifest, str):
        yield manifest
    elif isinstance(manifest, dict | list):
        for value in manifest.values() if isinstance(manifest, dict) else manifest:
            yield from _texts(value)


def _needed(manifest: Any) -> dict[str, bytes]:
    """Of the user's files that were run, those that parts and functions of the experiment are of.

    A file that one of these names, as `user_STEM` or `STEM.py`, is needed too.
    """
    sources = user_sources()
    paths = {module_name(path): path for path in sources}
    needed, waiting = set(), {text.partition(":")[0] for text in _texts(manifest)} & paths.keys()
    while waiting:
        needed.add(name := waiting.pop())
        named = {other for other in paths if _names(sources[paths[name]], other)}
        waiting |= named - needed
    return {path: source for path, source in sources.items() if module_name(path) in needed}


def _names(source: bytes, module: str) -> bool:
    stem = re.escape(module.removeprefix("user_"))
    return re.search(rf"\b(user_{stem}\b|{stem}\.py\b)".encode(), source) is not None


def _files(run: Run) -> list[dict[str, str]]:
    found = []
    for path, content in _needed(run.manifest).items():
        copy = Path("source") / hashlib.sha256(content).hexdigest()[:12] / Path(path).name
        if not (run.workdir / copy).exists():
            (run.workdir / copy).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(run.workdir / copy, content)
        with contextlib.suppress(OSError):  # it is trusted less then, which is no reason not to train
            _ran(content).touch()
        found.append(dict(path=path, copy=copy.as_posix()))
    return found


def _ran(content: bytes) -> Path:
    """What is there once the user has trained with a file of this content."""
    return cache_folder("ran") / hashlib.sha256(content).hexdigest()


def _version() -> str | None:
    try:
        return importlib.metadata.version("llm-jax")
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit of this project's checkout, and whether its code is as committed."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return None  # installed below a repository of the user's
        return dict(
            commit=git("rev-parse", "HEAD"), clean=not git("status", "--porcelain", "--", "llm_jax", "experiments")
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _packages() -> dict[str, str]:
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def _device() -> dict[str, Any]:
    first = jax.devices()[0]
    return dict(
        platform=first.platform, kind=first.device_kind, count=jax.device_count(), processes=jax.process_count()
    )
