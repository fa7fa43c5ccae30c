"""Settings that cannot be are refused in one line, and the project's experiments are the project's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llm_jax import experiment as experiments
from llm_jax.core import user_modules
from llm_jax.core.errors import InputError
from llm_jax.core.parts import replace
from llm_jax.layers.attention import Attention
from llm_jax.optim.optimizers import AdamW

BLOCK = "model.stack.pattern.0"


@pytest.mark.parametrize(
    "setting",
    [
        "seed=-1",
        "seed=9223372036854775808",
        "ema=1e999",
        "ema=1.0",
        "ema=0.99999999999",  # 1 in 32 bits
        "steps=0",
        "steps=2147483648",
        "save_every=0",
        "keep_best=-1",
        "optimizer.clip=-1",
        "optimizer.learning_rate=-0.001",
        "optimizer.learning_rate=1e39",  # infinite in 32 bits
        "optimizer.weight_decay=-0.1",
        "optimizer.b1=1.0",
        "optimizer.b2=0.99999999999",
        "optimizer.b2=-0.1",
        "optimizer.epsilon=1e-60",  # 0 in 32 bits
        "optimizer=Lion(b2=1)",
        "optimizer=Adafactor(momentum=1.0)",
        "optimizer=Muon(adam_rate=-1e-3)",
        "optimizer.schedule.last=-1",
        "optimizer.schedule.warmup=-1",
        "optimizer.schedule=WarmupStableDecay(decay=1.5)",
        "layout.data=0",
        "data.split=ByHash(1.0)",
        "data.packing=Windows(0)",
        "data.workers=-1",
        "model.norm.epsilon=-1e-6",
        "model.embed.scale=0",
        "model.stack.repeats=1000000000000",
        "tokenizer=Bpe(vocabulary=-1)",
        "optimizer.clip=1e999",
        "optimizer=Muon(learning_rate=0)",
        "layout.fsdp=0",
        "layout=Layout(tensor=0)",
        "data.evaluation_batches=0",
        "model.context=-1",
        "model.embed.width=0",
        "model.embed.dropout=1",
        "model.head=Head()",
        "model.norm=Norm()",
        "model.positions=Positions()",
        "model.positions=Learned(0)",
        "model.positions=Rope(share=1.5)",
        "model.positions.scaling=YarnScaling(original=0)",
        "model.stack.repeats=0",
        "model.stack.pattern=()",
        f"{BLOCK}.dropout=-0.1",
        f"{BLOCK}.ffn.hidden=0",
        f"{BLOCK}.attention=Attention(key_heads=0)",
        f"{BLOCK}.attention.group=0",
        f"{BLOCK}.attention.head=-8",
        f"{BLOCK}.attention.dropout=2",
        f"{BLOCK}.attention.mask=SlidingWindow(0)",
        f"{BLOCK}.attention.mask=Mask()",
        f"{BLOCK}.attention.kernel=Chunked(queries=0)",
        f"{BLOCK}.attention.kernel=Chunked(keys=0)",
        f"{BLOCK}.attention.kernel=Kernel()",
        f"{BLOCK}.placement=Placement()",
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_line(setting):
    with pytest.raises(InputError) as refused:
        experiments.get("small_gpt").set([setting])
    assert "\n" not in str(refused.value)


def test_a_folder_of_experiments_where_one_stands_does_not_take_the_projects_place(tmp_path):
    """Neither by name, nor through a manifest, nor when it is imported first."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("")
    for name in ("small_gpt", "sort"):
        (tmp_path / "experiments" / f"{name}.py").write_text("raise SystemExit('the decoy was run')")
    program = """
import json, sys
sys.path.insert(0, "")
from llm_jax import experiment
from llm_jax.core import parts, serialization, user_modules
from llm_jax.core.errors import InputError
if sys.argv[1] == "decoy":
    import experiments
    try:
        serialization.from_json({"part": "experiments.sort:Sort"})
    except InputError as refused:
        print(refused)
else:
    if sys.argv[1] == "manifest":
        try:
            serialization.from_json({"part": "experiments.sort:Nothing"})
        except InputError as refused:
            print(refused)
    print(experiment.get("small_gpt").name, experiment.get("sort").name)
    from experiments import small_gpt
    assert small_gpt.__file__ == str(user_modules.FOLDER / "small_gpt.py")
"""
    said = {}
    for case in ("name", "manifest", "decoy"):
        command = [sys.executable, "-W", "ignore", "-c", program, case]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said[case] = done.stdout
    assert said["name"] == "small_gpt sort\n"
    assert said["manifest"].endswith("which is not a part\nsmall_gpt sort\n")
    assert "the name 'experiments' is taken by" in said["decoy"]


def test_a_path_that_no_file_can_have():
    for use in (experiments.get, user_modules.load_module):
        with pytest.raises(InputError, match="File name too long"):
            use("x" * 300 + ".py")


def test_a_part_of_the_wrong_family_is_refused_where_it_is_set():
    made = experiments.get("small_gpt")
    fields = ("model", "tokenizer", "data", "objective", "optimizer", "layout", "precision", "tuning", "report")
    for name in fields:
        wrong = {"optimizer": Attention(1), "report": (AdamW(),)}.get(name, AdamW())
        with pytest.raises(InputError, match=rf"^{name}(\.0)? must be an? ") as refused:
            replace(made, **{name: wrong})
        assert "\n" not in str(refused.value)


def test_a_refused_tuning_names_all_there_are():
    with pytest.raises(InputError, match=r"^tuning must be a Tuning \(Dora, Frozen, Lora, Only, TrainAll\), not None"):
        experiments.get("small_gpt").override({"tuning": None})
