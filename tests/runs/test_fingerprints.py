"""Whatever of a run its results depend on is as it was when its checkpoints were saved, or refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.engine.restore import restore
from llm_jax.interop.peft import export_adapter
from llm_jax.models.inherited import Inherited
from llm_jax.optim.trainable import Lora
from llm_jax.runs.checksums import SEAL, damage, seal
from llm_jax.text.kept import Kept
from llm_jax.training.loop import train


@pytest.fixture(scope="module")
def short(tiny):
    return tiny.override({"steps": 2, "eval_every": 2, "save_every": 1})


@pytest.fixture(scope="module")
def trained(short, tmp_path_factory):
    """A run with all three: a manifest, a tokenizer, and what is frozen."""
    folder = tmp_path_factory.mktemp("belongs") / "run"
    train(short.override({"tuning": Lora(2)}), folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def open_run(short):
    return lambda run: restore(run, modules=(type(short.data.source).__module__,))


def change_epsilon(run):
    manifest = json.loads((run / "manifest.json").read_bytes())
    manifest["model"]["stack"]["pattern"][0]["norm"]["epsilon"] *= 1000
    (run / "manifest.json").write_text(json.dumps(manifest))


def swap_ids(run):
    tokenizer = json.loads((run / "tokenizer" / "tokenizer.json").read_bytes())
    vocab = tokenizer["model"]["vocab"]
    (a, i), (b, j) = sorted(vocab.items())[60:62]
    vocab[a], vocab[b] = j, i
    (run / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))


def change_special(run):
    special = json.loads((run / "tokenizer" / "special.json").read_bytes())
    special["ends"] = []
    (run / "tokenizer" / "special.json").write_text(json.dumps(special))


def freeze_another(run):
    """Whole and sealed, but of another run."""
    frozen = run / "frozen" / "00000000"
    (frozen / "more").write_text("")
    (frozen / SEAL).unlink()
    seal(frozen)
    assert damage(frozen) is None


CHANGES = {
    change_epsilon: r"manifest.json is not as it was when checkpoint 2 .* model.stack.pattern.0.norm.epsilon was 1e-0",
    swap_ids: "tokenizer is not as it was when checkpoint 2 was saved: put back",
    change_special: "tokenizer is not as it was",
    freeze_another: "frozen is not as it was",
    lambda run: shutil.rmtree(run / "frozen"): "frozen is missing, which the checkpoints of this run need",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_refused(run, short, open_run, tmp_path, change):
    change(run)
    with pytest.raises(InputError, match=CHANGES[change]):  # eval, sample, chat and export
        open_run(run)
    on = short.override({"init_from": str(run), "model": Inherited(), "tokenizer": Kept()})
    with pytest.raises(InputError):
        train(on, tmp_path / "on")
    assert not (tmp_path / "on" / "tokenizer" / "tokenizer.json").exists() or change not in (swap_ids, change_special)
    with pytest.raises(InputError):
        export_adapter(run, tmp_path / "adapter")
    with pytest.raises(InputError):
        train(short.override({"tuning": Lora(2), "steps": 3}), run)


def test_a_manifest_is_put_right_as_the_message_says(run, open_run):
    _, _, before = open_run(run)
    change_epsilon(run)
    with pytest.raises(InputError, match=r"put \S+checkpoints/00000002/manifest.json in its place$"):
        open_run(run)
    shutil.copy(run / "checkpoints" / "00000002" / "manifest.json", run / "manifest.json")
    jax.tree.map(np.testing.assert_array_equal, before, open_run(run)[2])


def test_what_a_resumed_run_may_change_may_be_changed(run, short, open_run):
    train(short.override({"tuning": Lora(2), "steps": 3, "eval_every": 1, "keep_best": 0}), run)
    assert json.loads((run / "manifest.json").read_bytes())["eval_every"] == 1
    (run / "checkpoints" / "00000003").rename(run / "gone")
    open_run(run)  # checkpoint 2 is older than the manifest
