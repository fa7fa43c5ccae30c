import json
import subprocess
import sys
from pathlib import Path

import pytest

from llm_jax.core import code
from llm_jax.core.code import code_hash
from llm_jax.core.errors import InputError
from llm_jax.core.parts import ROOT, Part
from llm_jax.core.user_modules import load_module
from llm_jax.data.cache import Corpus
from llm_jax.text.chat import ChatTemplate


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What is known of files is forgotten, and what a test writes was there before the process."""
    code._source.cache_clear()
    code._installed.cache_clear()
    monkeypatch.setattr(code, "STARTED", float("inf"))
    monkeypatch.setattr("llm_jax.core.user_modules._sources", {})  # workers of later tests are not sent these files
    yield
    code._source.cache_clear()
    code._installed.cache_clear()


@pytest.fixture
def own(tmp_path):
    """Loads a file of a user's own, as a new process would."""

    def load(text, name="own_code"):
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        sys.modules.pop(f"user_{name}", None)
        code._source.cache_clear()
        return load_module(path)

    yield load
    for name in [name for name in sys.modules if name.startswith("user_own_")]:
        del sys.modules[name]


IMPORTED = (
    "import sys, json, llm_jax.data.cache; print(json.dumps([n for n in sys.modules if n.startswith('llm_jax')]))"
)


def test_every_module_that_a_class_is_made_of_counts_and_no_other(monkeypatch):
    loaded = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True, cwd=ROOT)
    needed = {n for n in json.loads(loaded.stdout) if not (ROOT / n.replace(".", "/") / "__init__.py").is_file()}
    assert {"llm_jax.data.cache", "llm_jax.text.chat", "llm_jax.text.jinja", "llm_jax.core.parts"} < needed
    before, read = code_hash(Corpus), Path.read_bytes
    for module in (*needed, "llm_jax.models.decoder", "llm_jax.training.loop"):
        changed = ROOT / f"{module.replace('.', '/')}.py"
        monkeypatch.setattr(Path, "read_bytes", lambda p, c=changed: read(p) + b"# edited\n" * (p == c))
        code._source.cache_clear()
        assert (code_hash(Corpus) != before) == (module in needed), module


def test_the_same_code_has_the_same_hash_in_any_process_and_order():
    program = (
        "from llm_jax.core.code import code_hash; from llm_jax.data.cache import Corpus; "
        "from llm_jax.text.chat import ChatTemplate, Jinja; print(code_hash(ChatTemplate, Jinja, Corpus))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert other.stdout.strip() == code_hash(Corpus, ChatTemplate)
    assert code_hash(int, str) == code_hash(), "what is Python's is not of this project"


OWN = """
from llm_jax.text.chat import ChatTemplate
class Own(ChatTemplate):
    pass
def reward(prompts, completions, examples):
    return 1
"""


def test_a_users_class_and_function_count_by_their_file(own):
    module = own(OWN)
    first = code_hash(module.Own)
    assert first == code_hash(own(OWN).Own) and first == code_hash(module.reward) and first != code_hash(ChatTemplate)
    assert code_hash(own(OWN + "# a line more").Own) not in (None, first)


def test_a_base_in_another_file_counts_too(own):
    base = own(OWN, "own_base")
    text = "import sys\nclass Below(sys.modules['user_own_base'].Own):\n    pass\n"
    first = code_hash(own(text).Below)
    base.Own.__module__, changed = "user_own_base", own(OWN + "\nx = 1\n", "own_base")
    assert changed is not base and code_hash(own(text).Below) not in (None, first)


@pytest.mark.parametrize(
    "line",
    [
        "import beside_it", "from beside_it import x", "def f():\n    import beside_it.inner",
        "try:\n    import is_not_installed\nexcept ImportError:\n    pass", "import importlib",
        "from importlib import import_module", "x = __import__('json')", "exec('x = 1')",
        "from llm_jax.experiment import load_module", "import runpy as r",
    ],
)  # fmt: skip
def test_a_file_that_imports_other_files_of_the_user_has_no_hash(own, line, tmp_path, monkeypatch):
    (tmp_path / "beside_it").mkdir()
    (tmp_path / "beside_it" / "__init__.py").write_text("x = 1")
    (tmp_path / "beside_it" / "inner.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert code_hash(own(f"{OWN}\n{line}\n").Own) is None
    for name in ("beside_it", "beside_it.inner"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("line", ["import os.path, numpy as np", "from collections import abc", "import llm_jax"])
def test_a_file_that_imports_packages_has_one(own, line):
    assert code_hash(own(f"{OWN}\n{line}\n").Own) is not None


def test_the_version_of_a_package_that_a_users_file_imports_counts(own, monkeypatch):
    first, version = code_hash(own(f"{OWN}\nimport numpy\n").Own), code.importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: version(name) + ".1" * (name == "numpy"))
    code._source.cache_clear()
    module = own(f"{OWN}\nimport numpy\n")
    assert code_hash(module.Own) not in (None, first)
    assert code_hash(own(OWN).Own) is not None


def test_code_without_a_file_that_says_what_it_is_has_no_hash(own, monkeypatch):
    def made():
        class Own(Part):
            pass

        return Own

    assert code_hash(made()) is None
    module = own(OWN + "\nMade = type('Made', (ChatTemplate,), {})\nunnamed = lambda *_: 1\n")
    assert code_hash(module.Made) is None and code_hash(module.unnamed) is None
    assert code_hash(module.Own) is not None
    monkeypatch.delattr(module, "__file__")  # a notebook's cells have none
    code._source.cache_clear()
    assert code_hash(module.Own) is None


def test_what_was_edited_after_the_process_began_has_no_hash(own, monkeypatch):
    monkeypatch.setattr(code, "STARTED", 0.0)
    assert code_hash(ChatTemplate) is None, "the file may say something else than what runs"
    module = own("def reward(prompts, completions, examples):\n    return 1\n")
    assert code_hash(module.reward) is not None, "what ran is kept"
    monkeypatch.delattr(module, code.RAN)  # loaded in another way
    code._source.cache_clear()
    assert code_hash(module.reward) is None


def test_what_ran_counts_and_not_what_the_file_says_by_now(own, tmp_path):
    path = tmp_path / "own_code.py"
    first = code_hash(own(OWN).Own)
    path.write_text(edited := OWN + "\nx = 2\n")
    code._source.cache_clear()
    assert code_hash(sys.modules["user_own_code"].Own) == first
    second = code_hash(own(edited).Own)
    del sys.modules["user_own_code"]
    code._source.cache_clear()
    recorded = load_module(path, OWN.encode())  # as `train --workdir=DIR` runs the copy of what was trained with
    assert code_hash(recorded.Own) == first != second
    with pytest.raises(InputError, match="own_code\\.py was run already, as it is now and not as it was then"):
        load_module(path, edited.encode())
