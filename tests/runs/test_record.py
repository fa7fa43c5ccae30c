import json
import re
import shlex
import sys

import jax.numpy as jnp
import pytest

from llm_jax.core import user_modules
from llm_jax.core.errors import InputError
from llm_jax.core.files import digest
from llm_jax.core.user_modules import load_module, user_sources
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.runs.folder import Run
from llm_jax.runs.record import record, recorded, sessions

OWN = "from llm_jax.core.parts import Part\nclass Own(Part):\n    pass\n"


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Loads files of a user's own, and is their folder."""
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(user_modules, "_sources", {})

    def load(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.py").write_text(text)
            load_module(tmp_path / f"{name}.py")
        return tmp_path

    yield load
    for name in [name for name in sys.modules if name.startswith("user_record_")]:
        del sys.modules[name]


def recorded_files(tmp_path, manifest):
    with Run.open(tmp_path / "run", manifest) as run:
        record(run, 0)
        return [file["path"] for file in sessions(run)[-1]["files"]]


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({}, []),
        ({"model": {"part": "user_record_a:Own"}}, ["a"]),
        ({"objective": {"rewards": [{"part": "llm_jax.x:Function", "name": "user_record_b:f"}]}}, ["b"]),
        ({"data": [{"part": "user_record_c:Own"}]}, ["a", "c"]),
        ({"data": [{"part": "user_record_d:Own"}]}, ["a", "c", "d"]),
    ],
)
def test_the_files_of_a_run_are_those_that_its_parts_are_of(own, tmp_path, manifest, expected):
    c = f"import sys\nBase = sys.modules['user_record_a'].Own\n{OWN}"
    own(record_a=OWN, record_b="def f(*_):\n    return 1\n", record_c=c, record_d=f"{OWN}# record_c.py is read\n")
    assert len(user_sources()) == 4
    assert recorded_files(tmp_path, manifest) == [str(tmp_path / f"record_{name}.py") for name in expected]


def test_a_torn_last_line_is_cut_off_and_the_run_goes_on(tmp_path):
    with Run.open(tmp_path, {}) as run:
        record(run, 0)
        with open(run.sessions, "ab") as file:
            file.write(b'{"date": "20')
        record(run, 5)
        assert [session["step"] for session in sessions(run)] == [0, 5]


def test_a_cache_folder_that_cannot_be_written_is_no_reason_not_to_train(own, tmp_path, monkeypatch):
    own(record_a=OWN)
    monkeypatch.setattr("llm_jax.runs.record._ran", lambda content: tmp_path / "not there" / digest(content))
    assert recorded_files(tmp_path, {"model": {"part": "user_record_a:Own"}})


def claim(tmp_path, copy, workdir="run"):
    """A run of a stranger's."""
    with Run.open(tmp_path / workdir, {}) as run:
        run.sessions.write_text(json.dumps({"step": 0, "files": [{"path": "/x/record_e.py", "copy": copy}]}) + "\n")
    return run


@pytest.mark.parametrize("copy", ["../secret", "source/../../secret", "/etc/passwd", "source/link", "x\0", 3])
def test_no_file_is_read_that_is_not_in_source(tmp_path, copy):
    run = claim(tmp_path, copy)
    (tmp_path / "secret").write_text("")
    (run.workdir / "source").mkdir()
    (run.workdir / "source" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=r"sessions\.jsonl is damaged: its last line ") as error:
        recorded(run.workdir)
    assert "secret" not in str(error.value) and "--modules" not in str(error.value)


def test_the_advice_to_trust_a_file_can_be_pasted_into_a_shell(tmp_path):
    run = claim(tmp_path, copy := "source/ab/it's; own.py", "a $run")
    (run.workdir / copy).parent.mkdir(parents=True)
    (run.workdir / copy).write_text(OWN)
    with pytest.raises(InputError, match=r"if you trust it$") as error:
        recorded(run.workdir)
    words = str(error.value).partition(" and pass ")[2]
    assert shlex.split(words.removesuffix(" if you trust it")) == [f"--modules={run.workdir / copy}"]


def test_an_imported_run_is_trained_on_by_another(tmp_path):
    with Run.open(tmp_path, {}) as run, Checkpoints(run.checkpoints, {}) as checkpoints:
        checkpoints.save(0, {"params": jnp.zeros(2)}, data={}, metrics={})
    said = f"{tmp_path} was imported: train NAME --set=init_from={tmp_path} --workdir=ANOTHER"
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        recorded(tmp_path)
