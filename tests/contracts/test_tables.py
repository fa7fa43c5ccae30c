"""What every entry of every table promises. A new entry is enrolled by its line in the table."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import subprocess
import sys
import types
import typing
from collections import Counter

import flax.linen as nn
import pytest

import llm_jax
from llm_jax import experiment
from llm_jax.core import parts, serialization, user_modules
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part, Size
from llm_jax.experiment import Experiment


def tables() -> list[tuple[str, str, dict[str, type]]]:
    """(module, name, table) for every dictionary of part classes with a name in capitals."""
    found = []
    for info in pkgutil.walk_packages(llm_jax.__path__, "llm_jax."):
        if info.name != "llm_jax.__main__":
            for name, value in vars(importlib.import_module(info.name)).items():
                classes = list(value.values()) if name.isupper() and isinstance(value, dict) else []
                if classes and all(is_class(cls) and cls.__module__ == info.name for cls in classes):
                    found.append((info.name, name, value))
    return found


def is_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, (Part, nn.Module))


TABLES = tables()
ENTRIES = [pytest.param(cls, id=f"{table}.{name}") for _, table, entries in TABLES for name, cls in entries.items()]
SAMPLES = {int: 3, float: 0.5, str: "text", bool: True}


def sample(cls: type) -> object:
    """The part with its default settings, and something for those that must be given."""
    needed = [f for f in dataclasses.fields(cls) if f.name in parts.settings(cls) and f.default is dataclasses.MISSING]
    given = {}
    for field in needed:
        if field.default_factory is dataclasses.MISSING:
            given[field.name] = fill(parts.types_of(cls)[field.name])
    return cls(**given)


def numbers(declared: object) -> list[object]:
    """The types of numbers in a declared one, each with its range if it has one."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if origin is typing.Annotated and arguments[0] in (int, float):
        return [declared]
    if origin in (types.UnionType, typing.Union, tuple, typing.Annotated):
        return [found for argument in arguments for found in numbers(argument)]
    return [declared] if declared in (int, float) else []


def fill(declared):
    if typing.get_origin(declared) is typing.Annotated:
        declared = typing.get_args(declared)[0]
    if declared in SAMPLES:
        return SAMPLES[declared]
    if getattr(declared, "__origin__", None) is tuple:
        return (fill(declared.__args__[0]),)
    if isinstance(declared, types.UnionType):
        declared = declared.__args__[0]
    here = [cls for _, _, entries in TABLES for cls in entries.values() if issubclass(cls, declared)]
    return sample(next((cls for cls in here if not stands_on(cls, declared)), declared))


def stands_on(cls: type, family: type) -> bool:
    """Whether it is built on another part of the family, as a head is on a model."""
    choices = [c for declared in parts.types_of(cls).values() for c in (typing.get_args(declared) or (declared,))]
    return any(isinstance(choice, type) and issubclass(choice, family) for choice in choices)


def test_there_are_tables():
    names = {name for _, name, _ in TABLES}
    assert {
        "POSITIONS",
        "MASKS",
        "KERNELS",
        "NORMS",
        "FEEDFORWARDS",
        "PLACEMENTS",
        "HEADS",
        "SCALINGS",
        "INITS",
    } <= names
    assert {
        "MODELS",
        "OBJECTIVES",
        "RECIPES",
        "FILES",
        "PACKAGED",
        "DOWNLOADS",
        "MIXTURES",
        "PACKINGS",
        "SPLITS",
        "OPTIMIZERS",
        "SCHEDULES",
    } <= names


@pytest.mark.parametrize(("module", "table", "entries"), TABLES, ids=[name for _, name, _ in TABLES])
def test_a_table_is_one_family_under_its_own_names_and_nobody_is_forgotten(module, table, entries):
    assert all(name == cls.__name__ for name, cls in entries.items())
    families = {parts.family(cls) for cls in entries.values()}
    assert len(families) == 1
    (family,) = families
    here = [c for c in vars(importlib.import_module(module)).values() if is_class(c) and c.__module__ == module]
    members = {c for c in here if issubclass(c, family) and c is not family and not c.__name__.startswith("_")}
    missing = {c.__name__ for c in members} - set(entries)
    assert not {name for name in missing if not inspect.isabstract(vars(importlib.import_module(module))[name])}


@pytest.mark.parametrize("module", sorted({module for module, _, _ in TABLES}))
def test_a_table_is_found_when_a_user_names_what_is_in_it(module):
    assert parts.TABLE.search(inspect.getsource(importlib.import_module(module)))


def test_what_an_experiment_does_not_import_can_be_named():
    code = "from llm_jax.core.serialization import parse; print(parse('Contrastive(0.1)'), parse('Masked(0.3)'))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "Contrastive(temperature=0.1) Masked(share=0.3, whole_words=False)\n"


@pytest.mark.parametrize("cls", ENTRIES)
def test_an_entry_survives_the_manifest_and_is_typed_by_name(cls):
    part = sample(cls)
    assert parts.is_part(part) and parts.check(part) == part
    assert serialization.from_json(json.loads(json.dumps(serialization.to_json(part)))) == part
    assert hash(part) == hash(sample(cls))
    assert serialization.parse(written(part)) == part


def written(value: object) -> str:
    """The value as a user would type it."""
    if parts.is_part(value):
        settings = ", ".join(f"{n}={written(getattr(value, n))}" for n in parts.settings(value))
        return f"{type(value).__name__}({settings})"
    if isinstance(value, tuple):
        return "(" + "".join(written(v) + ", " for v in value) + ")"
    return repr(value)


for name in user_modules.list_names():  # their parts too
    experiment.get(name)
EVERYTHING = sorted(
    {
        cls
        for root in (Part, nn.Module)
        for cls in parts.descendants(root)
        if cls.__module__.startswith(("llm_jax.", "experiments.")) and dataclasses.is_dataclass(cls)
    },
    key=lambda cls: (cls.__module__, cls.__qualname__),
)


def test_every_number_of_every_part_has_a_range():
    """`Number`, where it may be any: said, not forgotten."""
    assert Experiment in EVERYTHING and {cls for _, _, entries in TABLES for cls in entries.values()} <= {*EVERYTHING}
    settings = [(cls, *pair) for cls in EVERYTHING for pair in parts.types_of(cls).items()]
    without = [
        f"{cls.__module__}.{cls.__qualname__}.{name}"
        for cls, name, declared in settings
        if any(typing.get_origin(number) is not typing.Annotated for number in numbers(declared))
    ]
    assert not without, f"give these a type of core/parts.py, such as Size, Count, Positive, Rate or Number: {without}"
    assert sum(bool(numbers(declared)) for *_, declared in settings) > 200


@pytest.mark.parametrize("cls", ENTRIES)
def test_a_number_out_of_its_range_is_refused(cls):
    """By whoever checks a part: a file, the command line, a manifest, a training."""
    for name, declared in parts.types_of(cls).items():
        for number in numbers(declared):
            kind, range_ = typing.get_args(number)
            wrong = [math.nan, math.inf, -math.inf, 1e39] if kind is float else [1.5, 2**63]
            wrong += [kind(range_.least) - 1] if math.isfinite(range_.least) else []
            wrong += [kind(range_.most) + 1] if math.isfinite(range_.most) else []
            wrong += [kind(edge) for edge in (range_.above, range_.below) if math.isfinite(edge)]
            for value in wrong:
                given = (value,) if typing.get_origin(declared) is tuple else value
                if declared == Size | typing.Literal[-1] and value == -1:
                    continue
                with pytest.raises(InputError):
                    parts.check(parts.replace(sample(cls), **{name: given}))


def test_a_name_means_one_part():
    """What a user types is looked up by name alone."""
    ours = [c for root in (Part, nn.Module) for c in parts.descendants(root) if c.__module__.startswith("llm_jax.")]
    names = Counter(c.__name__ for c in set(ours) if not c.__name__.startswith("_"))
    assert not [name for name, number in names.items() if number > 1]
