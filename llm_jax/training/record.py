"""What made a run: a line of sessions.jsonl for each session that trained it, and the user's own files as they were."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from llm_jax.core.files import cache_folder, read_json_lines, reading, write_atomically
from llm_jax.core.parts import ROOT
from llm_jax.core.tables import InputError
from llm_jax.experiment import Experiment, load_module, module_name, user_sources
from llm_jax.training.disk import space_for
from llm_jax.training.run import Run


def record(run: Run, step: int) -> None:
    """Adds a line for a session that begins after `step`.

    It has the date, the version of this project with its git commit and whether that was clean (None where it is no
    checkout), the packages, the device, the command, and the user's files that were run, of which `source/` has copies.
    """
    session = dict(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), step=step, version=_version(),
        git=_git(), python=platform.python_version(), packages=_packages(), device=_device(),
        command=shlex.join(sys.orig_argv), folder=os.getcwd(),
    )  # fmt: skip
    with space_for(f"the record of this session is not in {run.sessions}"):
        line = json.dumps(session | dict(files=_files(run)))
        with open(run.sessions, "ab", buffering=0) as file:
            file.write(f"{line}\n".encode())


def sessions(run: Run) -> list[dict[str, Any]]:
    """What `record` wrote, oldest first.

    Raises:
      InputError: the file is damaged.
    """
    return read_json_lines(run.sessions) if run.sessions.exists() else []


def recorded_experiment(workdir: str | Path, modules: tuple[str, ...] = ()) -> tuple[Experiment, list[str]]:
    """The experiment of a run, from its folder alone, and the copies of the user's own files that were run for it.

    A copy is run only if this user ran a file of that content before, on this machine: a folder may be a stranger's.

    Args:
      modules: names of the user's modules that are loaded already.

    Raises:
      InputError: there is no run, or it needs a file that was not run here.
    """
    run = Run.existing(workdir)
    copies = []
    last = next(iter(reversed(sessions(run))), {"files": []})
    try:
        files = [(run.workdir / file["copy"], Path(file["path"])) for file in last["files"]]
    except (KeyError, TypeError):
        raise InputError(f"{run.sessions} is damaged: its last line does not name the files of its session") from None
    for copy, path in files:
        if module_name(path) in modules:
            continue
        with reading(copy):
            content = copy.read_bytes()
        if not _ran(content).exists():
            raise InputError(
                f"{run.workdir} was made with a file that was not run here before: read {copy}, and pass "
                f"--modules={copy} if you trust it"
            )
        load_module(path, content)
        copies.append(str(copy))
    return Experiment.of(run.manifest, (*modules, *map(module_name, copies))), copies


def _files(run: Run) -> list[dict[str, str]]:
    found = []
    for path, content in user_sources().items():
        copy = Path("source") / hashlib.sha256(content).hexdigest()[:12] / Path(path).name
        if not (run.workdir / copy).exists():
            (run.workdir / copy).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(run.workdir / copy, content)
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
