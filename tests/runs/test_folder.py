import json
import os
import signal
import subprocess
import sys

import pytest

from llm_jax.core.errors import InputError
from llm_jax.runs.folder import Run, differences


def manifest(name="small_gpt", repeats=4, positions="Rope", steps=100, rate=0.1, **more):
    stack = {"part": "llm_jax.models.stack:Stack", "pattern": [{"part": "a:Block"}], "repeats": repeats}
    model = {"part": "llm_jax.models:Decoder", "stack": stack, "positions": {"part": f"p:{positions}"}}
    return {"part": "llm_jax.experiment:Experiment", "name": name, "model": model, "steps": steps, "rate": rate} | more


def test_is_made_with_its_folders_and_gone_on_with(tmp_path):
    with Run.open(tmp_path / "a" / "b", manifest()) as run:
        assert run.tokenizer.is_dir() and run.checkpoints.is_dir() and run.events.is_dir()
    before = (tmp_path / "a/b/manifest.json").stat().st_mtime_ns
    with Run.open(tmp_path / "a" / "b", manifest()):
        assert (tmp_path / "a/b/manifest.json").stat().st_mtime_ns == before
    assert Run.existing(tmp_path / "a" / "b").manifest == manifest()


def test_how_it_is_computed_may_change(tmp_path):
    Run.open(tmp_path, manifest(data={"part": "a:Data", "workers": 0, "evaluation_batches": None})).close()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    other = manifest(data={"part": "a:Data", "workers": 2, "evaluation_batches": 3})
    other["model"]["stack"] |= {"run": "scan", "remat": "full"}
    Run.open(tmp_path, other).close()
    assert Run.existing(tmp_path).manifest == other


def test_steps_may_change_and_are_written_down(tmp_path):
    Run.open(tmp_path, manifest()).close()
    Run.open(tmp_path, manifest(steps=200)).close()
    assert Run.existing(tmp_path).manifest["steps"] == 200


@pytest.mark.parametrize(
    "other, message",
    [
        (manifest(repeats=6), "was made by small_gpt with model.stack.repeats=4, not 6: use another --workdir or"),
        (manifest(positions="Alibi"), r"with model.positions=Rope\(\), not Alibi\(\): "),
        (manifest(name="sort"), "was made by small_gpt, not by sort: use another --workdir"),
        (manifest(rate=0.2, repeats=1, positions="T", a=1, b=(2, "x")), "not 0.2, and 2 more: "),
        (manifest(seed=1), "with seed=None, not 1: "),
    ],
)
def test_refuses_the_folder_of_another_experiment(tmp_path, other, message):
    Run.open(tmp_path, manifest()).close()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InputError, match=message) as refused:
        Run.open(tmp_path, other)
    assert "\n" not in str(refused.value)
    assert Run.existing(tmp_path).manifest == manifest()
    Run.open(tmp_path, manifest()).close()  # the refused one has let go of the lock


def test_a_run_that_failed_before_its_first_step_may_be_mended(tmp_path):
    with Run.open(tmp_path, manifest()) as run:
        (run.tokenizer / "tokenizer.json").write_text("of the wrong texts")
    Run.open(tmp_path, manifest()).close()
    assert list(run.tokenizer.iterdir())
    with Run.open(tmp_path, manifest(rate=0.2)) as run:
        assert not list(run.tokenizer.iterdir())
    assert Run.existing(tmp_path).manifest == manifest(rate=0.2)


def test_differences_name_the_innermost_path():
    assert list(differences(manifest(), manifest())) == []
    assert list(differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]})) == [("a.1.b", 2, 3)]
    assert list(differences({"a": [1]}, {"a": [1, 2]})) == [("a", [1], [1, 2])]
    assert list(differences({"a": 1}, {"a": True})) == [("a", 1, True)]


def nested(levels):
    return b'{"steps": ' + b"[" * levels + b"]" * levels + b"}"


def test_missing_and_damaged(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        Run.existing(tmp_path / "none")
    with pytest.raises(InputError, match=r"cannot read .*: File name too long"):
        Run.existing(tmp_path / ("x" * 300))
    with pytest.raises(InputError, match=r"has no manifest.json"):
        Run.existing(tmp_path)
    for content in (b"{", b"[]", b"\xff", nested(200), nested(100_000)):
        (tmp_path / "manifest.json").write_bytes(content)
        for use in (Run.existing, lambda path: Run.open(path, manifest())):
            with pytest.raises(InputError, match=r"manifest.json is damaged"):
                use(tmp_path)


def test_checkpoints_without_a_manifest_are_not_taken_over(tmp_path):
    (tmp_path / "checkpoints" / "00000001").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has no manifest.json"):
        Run.open(tmp_path, manifest())


def test_a_workdir_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=r"cannot write in .*file"):
            Run.open(path, manifest())


def test_one_trainer_at_a_time(tmp_path):
    first = Run.open(tmp_path, manifest())
    with pytest.raises(InputError, match="another process is training in"):
        Run.open(tmp_path, manifest())
    program = f"from llm_jax.runs.folder import Run; Run.open({str(tmp_path)!r}, {json.dumps(manifest())})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "InputError: another process is training in" in done.stderr
    assert Run.existing(tmp_path).manifest == manifest()  # reading is free
    first.close()
    Run.open(tmp_path, manifest()).close()


def test_a_worker_that_outlives_the_trainer_does_not_hold_the_lock(tmp_path):
    program = f"""
import os, time
from llm_jax.runs.folder import Run
run = Run.open({str(tmp_path)!r}, {json.dumps(manifest())})
worker = os.fork()
if worker == 0:
    os.close(1)
    time.sleep(60)
print(worker, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        Run.open(tmp_path, manifest()).close()
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


def test_imports_no_orbax_nor_tensorboard():
    program = """
import sys, llm_jax.runs.folder, llm_jax.runs.checkpoints, llm_jax.runs.metrics, llm_jax.training.display
late = [name for name in ("orbax", "tensorboardX", "torch") if name in sys.modules]
assert not late, late
"""
    subprocess.run([sys.executable, "-c", program], check=True)
