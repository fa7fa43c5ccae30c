"""What the README tells people to type exists: its make targets, its verbs, and every flag of each."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llm_jax.core import user_modules
from llm_jax.models.presets import PRESETS

ROOT = Path(__file__).parents[2]


def commands(page: Path) -> list[list[str]]:
    """Every command in the page's `sh` blocks as words, without comments; a trailing backslash joins lines."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@functools.cache
def help_page(*verb: str) -> str:
    command = [sys.executable, "-m", "llm_jax", *verb, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


COMMANDS = commands(ROOT / "README.md")
OURS = [words[3:] for words in COMMANDS if words[1:3] == ["-m", "llm_jax"]]
NAMED = [words[1] for words in OURS if words[0] in ("train", "show") and not words[1].endswith(".py")]
TARGETS = [words[1] for words in COMMANDS if words[0] == "make"]


def test_the_readme_shows_the_two_commands_and_every_verb():
    assert {"quickstart", "test"} <= set(TARGETS)
    assert {words[0] for words in OURS} >= {"list", "show", "train", "eval", "sample", "chat"}


@pytest.mark.parametrize("target", sorted(set(TARGETS)))
def test_make_target_exists(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(set(NAMED)))
def test_experiment_or_preset_exists(name: str):
    assert name in user_modules.list_names() or name in PRESETS


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_verb_and_flags_exist(words: list[str]):
    verb, *rest = words
    assert re.search(rf"\b{verb}\b", help_page())
    for word in rest:
        if flag := re.match(r"--(?:no)?(\w+)", word):
            assert re.search(rf"--(\[no\])?{flag[1]}\b", help_page(verb)), word
