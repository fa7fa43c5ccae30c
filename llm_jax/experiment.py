"""An experiment: a frozen tree of parts that says all there is to say about a training.

Experiments live in files: `experiments/NAME.py`, or a file of the user's own, given by its path. The file's docstring
begins with its question; its function `experiment()` returns the experiment.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import flax.linen as nn

from llm_jax.core import parts, serialization
from llm_jax.core.code import RAN
from llm_jax.core.errors import InputError, nearest
from llm_jax.core.files import reading, user_path
from llm_jax.core.parts import Count, Part, Rate, Seed, Size

FOLDER = Path(__file__).resolve().parent.parent / "experiments"


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
    model: nn.Module
    tokenizer: Part
    data: Part
    objective: Part
    optimizer: Part
    layout: Part
    precision: Part
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
    tuning: Part | None = None  # which parameters are trained; None: all
    report: tuple[Part, ...] = ()  # what is measured and shown when the training has ended
    init_from: str = ""

    def __post_init__(self) -> None:
        for name in parts.settings(self):
            if isinstance(value := getattr(self, name), int | float):
                parts.conform(value, parts.types_of(type(self))[name], name)

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


def names() -> list[str]:
    """The registered experiments: the files of the folder, and of those in it."""
    found = (path.relative_to(FOLDER).with_suffix("") for path in FOLDER.rglob("*.py"))
    return sorted(path.as_posix() for path in found if not path.name.startswith("_"))


def question(name: str) -> str:
    """The first line of an experiment file's docstring, without running the file."""
    tree = ast.parse(_path(name).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def get(name: str | Path) -> Experiment:
    """The experiment with this name, or of the user's file at this path.

    Raises:
      InputError: there is none, or its file is no experiment's.
    """
    module = load_module(_path(str(name)))
    make = getattr(module, "experiment", None)
    if not callable(make):
        raise InputError(f"{name} has no function experiment()")
    made = make()
    if not isinstance(made, Experiment):
        raise InputError(f"{name}: experiment() must return an Experiment, not {type(made).__name__}")
    return dataclasses.replace(parts.check(made), name=str(name) if name in names() else Path(name).stem)


def _path(name: str) -> Path:
    if name.endswith(".py"):
        path = user_path(name)
        with reading(path):
            if not path.is_file():
                raise InputError(f"there is no experiment file {name}")
        return path
    if name not in names():
        raise InputError(f"no experiment named {name!r}: {nearest(name, names())}")
    return FOLDER / f"{name}.py"


def load_module(path: str | Path, source: bytes | None = None) -> ModuleType:
    """Runs a file, which the user thereby trusts: of the project's experiments, or one of the user's own.

    A file of the user's own is known by its stem, also in manifests. `source` is what to run in place of what is in it
    by now: what another process ran.

    Raises:
      InputError: there is no such file, or another of that name, or with another `source`, was run already.
    """
    with reading(path):
        path = user_path(path).resolve()
        if source is None and not path.is_file():
            raise InputError(f"there is no file {path}")
    if path.is_relative_to(FOLDER):
        parts.own_package("experiments")  # not another package of that name in the current folder
        return importlib.import_module(".".join(["experiments", *path.relative_to(FOLDER).with_suffix("").parts]))
    name = module_name(path)
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(path):
            if source is not None and source != getattr(known, RAN):
                raise InputError(f"{path} was run already, as it is now and not as it was then: begin a new process")
            return known
        raise InputError(f"{path}: the name {name!r} is taken by another module, rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    if source is None:
        with reading(path):
            source = path.read_bytes()
    setattr(module, RAN, source)
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    _sources[str(path)] = source
    return module


_sources: dict[str, bytes] = {}


def user_sources() -> dict[str, bytes]:
    """By path, the user's own files that were run and are still loaded, as they were when they were run."""
    loaded = {getattr(sys.modules[name], "__file__", None) for name in user_modules()}
    return {path: source for path, source in _sources.items() if path in loaded}


def user_modules() -> tuple[str, ...]:
    """The names of the user's own files that were run so far."""
    return tuple(name for name in sys.modules if name.startswith("user_"))


def module_name(path: str | Path) -> str:
    """What the parts of a user's file are called in a manifest: `user_STEM`."""
    return f"user_{Path(path).stem}"
