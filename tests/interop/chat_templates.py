"""Chat templates as they are published: trl's folder has a copy of each."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.find_spec("trl")
FOLDER = Path(SPEC.origin).parent / "chat_templates" if SPEC and SPEC.origin else None
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja")) if FOLDER else []


def source_of(name: str) -> str:
    """The text of a template; where trl is absent, the test is skipped."""
    if FOLDER is None:
        pytest.skip("needs trl, whose folder has the published templates")
    return (FOLDER / f"{name}.jinja").read_text()
