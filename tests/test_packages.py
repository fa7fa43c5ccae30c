"""What pip is asked for: Colab's packages are enough, and each extra that a message names exists."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = {
    canonicalize_name(pin.name): next(iter(pin.specifier)).version
    for line in (ROOT / "constraints-colab.txt").read_text().splitlines()
    if line and not line.startswith("#")
    for pin in [Requirement(line)]
}


@pytest.mark.parametrize(
    "wanted", [*PROJECT["dependencies"], *EXTRAS["interop"], *EXTRAS["corpora"], *EXTRAS["metrics"]]
)
def test_colabs_packages_are_enough(wanted: str):
    """On Colab a package that pip replaces is loaded already: the kernel would go on with a mixture of both."""
    requirement = Requirement(wanted)
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_each_extra_that_is_named_exists():
    pages = [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "llm_jax").rglob("*.py")]
    named = {
        extra
        for page in pages
        for extras in re.findall(r"""["']\.\[([\w,]+)\]["']""", page.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert "interop" in named and named <= EXTRAS.keys()


def named_in_text() -> list[str]:
    """What messages and docstrings name by room, module and name: `interop.import_.read`. (`data.` begins settings.)"""
    rooms = {path.parent.name for path in (ROOT / "llm_jax").glob("*/__init__.py")} - {"data"}
    name = re.compile(rf"(?<![\w./])(?:llm_jax\.)?((?:{'|'.join(sorted(rooms))})(?:\.[a-z_]+){{2,}})")
    found: set[str] = set()
    for path in (ROOT / "llm_jax").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.lstrip().startswith(("from ", "import ")):
                found.update(name.findall(line))
    return sorted(found)


@pytest.mark.parametrize("name", named_in_text())
def test_what_a_text_names_is_there(name: str):
    module, _, attribute = f"llm_jax.{name}".rpartition(".")
    try:
        importlib.import_module(f"llm_jax.{name}")
    except ImportError:
        assert hasattr(importlib.import_module(module), attribute)
