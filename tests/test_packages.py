"""What pip is asked for: Colab's packages are enough, and each extra that a message names exists."""

from __future__ import annotations

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
