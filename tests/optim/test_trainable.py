"""Which parameters are trained, and what a run keeps of the others."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llm_jax.core.dims import Fill
from llm_jax.core.errors import InputError
from llm_jax.core.quantized import Nf4, is_quantized, plain
from llm_jax.core.user_modules import load_module
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.sources import JsonLines, TextFiles
from llm_jax.engine.evaluation import evaluate
from llm_jax.engine.init_from import begin, inherit
from llm_jax.engine.restore import restore
from llm_jax.engine.step import Program, fill
from llm_jax.experiment import Experiment
from llm_jax.interop.peft import export_adapter
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.masks import Full
from llm_jax.layers.pooling import Pooler
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier, Scorer
from llm_jax.models.inherited import Inherited
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.objectives.preferences import BradleyTerry
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.schedules import Constant
from llm_jax.optim.trainable import TUNINGS, Dora, Frozen, Lora, Only, TrainAll, leaves, merge, part, tree
from llm_jax.runs.metrics import read
from llm_jax.text.kept import Kept
from llm_jax.text.recipes import Bytes, Characters
from llm_jax.training.loop import train

EXAMPLES = {  # of every entry of the table
    "TrainAll": TrainAll(),
    "Only": Only(("stack.*.query.*", "norm.scale")),
    "Frozen": Frozen(("embed.*", "*.ffn.*")),
    "Lora": Lora(2, paths=("*.query.kernel", "*.ffn.*.kernel"), also=("norm.scale",)),
    "Dora": Dora(2),
}
QUANTISED = Dora(2, also=("norm.scale",), base=Nf4(32))


FILE = '''
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.models.pretrained import Pretrained
from llm_jax.objectives.next_token import NextToken


@dataclasses.dataclass(frozen=True)
class Anchored(NextToken):
    """Next tokens, measuring how far the parameters are from the first ones; and a teacher is asked."""

    teacher: Pretrained | None = None

    def keeps_reference(self):
        return True

    def __call__(self, model, params, frozen, batch, key):
        sums = super().__call__(model, params, frozen, batch, key)
        now, then = (dict(jax.tree_util.tree_leaves_with_path(t)) for t in (params, frozen["reference"]))
        pairs = [(now[path], leaf) for path, leaf in then.items() if leaf.dtype == jnp.float32]  # adapters are no part
        sums["moved"] = sum(((a - b) ** 2).sum() for a, b in pairs) * sums["weight"]
        if self.teacher is not None:
            taught: Any = self.teacher.model.apply({"params": self.teacher.params(frozen)}, batch["tokens_BT"])
            sums["taught"] = jnp.abs(taught[0]).max() * sums["weight"]
        return sums


@dataclasses.dataclass(frozen=True)
class Quiet(NextToken):
    """Asks nothing of the model."""

    def __call__(self, model, params, frozen, batch, key):
        return dict(weight=batch["weight_BT"].sum(), loss=batch["weight_BT"].sum())
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Any:
    """Objectives of a user's file, as a manifest may name them."""
    path = tmp_path_factory.mktemp("own") / "tuning_objectives.py"
    path.write_text(FILE)
    return load_module(path)


def test_every_entry_has_an_example():
    assert EXAMPLES.keys() == TUNINGS.keys()


@pytest.fixture(scope="module")
def tiny(tiny, tmp_path_factory) -> Experiment:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n".join(f"{i} and {i + 1} make {2 * i + 1}" for i in range(100)))
    return tiny.override({"data.source": TextFiles(str(path), "\n")})


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    train(tiny.override({"steps": 2}), folder)
    return folder


def on(tiny: Experiment, base: Path, **changes: Any) -> Experiment:
    start = {"name": "on", "model": Inherited(), "tokenizer": Kept(), "init_from": str(base)}
    return tiny.override(start | changes)


def same(a: Any, b: Any) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.mark.parametrize("tuning", EXAMPLES.values(), ids=EXAMPLES)
def test_it_begins_as_the_whole_model_and_moves_only_what_is_trained(tiny, tuning):
    experiment = tiny.override({"tuning": tuning})
    program, whole = (Program(e, tiny.layout.mesh()) for e in (experiment, tiny))
    state, drawn = program.begin(), whole.begin().params
    same(program.merged(state.params, state.frozen), drawn)
    tuned = program.experiment.tuning
    assert isinstance(tuned, type(tuning))
    same(tuning.original(tuning.kept(state.params), (state.frozen or {}).get("base", {})), drawn)
    trained, all_there_are = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (state.params, drawn))
    assert trained == all_there_are if tuning == TrainAll() else 0 < trained < all_there_are


@pytest.mark.parametrize("tuning", [*EXAMPLES.values(), QUANTISED], ids=[*EXAMPLES, "quantised"])
def test_what_is_frozen_is_kept_once_and_a_run_resumes_to_the_bit(tiny, base, own, tmp_path, tuning):
    teacher = Pretrained(str(base))
    experiment = on(tiny, base, tuning=tuning, objective=own.Anchored(teacher=teacher), steps=4, save_every=2)
    straight = train(experiment, tmp_path / "straight")
    train(experiment.override({"steps": 2}), tmp_path / "halves")
    halves = train(experiment, tmp_path / "halves")
    assert int(halves.step) == 4
    same(straight, halves)
    saved = tmp_path / "halves" / "checkpoints" / "00000004" / "state"
    assert (tmp_path / "halves" / "frozen" / "00000000").exists() and saved.exists()
    program, _, params = restore(tmp_path / "halves", modules=(own.__name__,))
    before = restore(base)[2]
    reference = jax.tree.map(plain, program.frozen["reference"], is_leaf=is_quantized)
    if tuning == QUANTISED:  # training began with what the codes of the base stand for
        kept = jax.tree.map(lambda a, b: a.shape == b.shape and np.allclose(a, b, atol=0.2), reference, before)
        assert all(jax.tree.leaves(kept))
        before = reference
    moved = {path for path, leaf in leaves(params).items() if (leaf != leaves(before)[path]).any()}
    assert moved and (tuning == TrainAll()) == (moved == leaves(params).keys())
    same(reference, before)
    same(program.frozen["pretrained"][str(base)], restore(base)[2])


def test_another_objective_than_the_runs_sees_its_reference(tiny, base, own, tmp_path):
    train(on(tiny, base, objective=own.Anchored(teacher=Pretrained(str(base))), steps=2), tmp_path)
    program, tokenizer, params = restore(tmp_path, ["objective.teacher=None"], (own.__name__,))
    same(program.frozen["reference"], restore(base)[2])
    assert evaluate(program, params, tiny.data.evaluation(tokenizer))["moved"] > 0
    program, _, _ = restore(tmp_path, ["objective=NextToken()"], (own.__name__,))
    assert program.frozen.keys() == {"reference", "pretrained"}


def test_it_sees_the_reference_and_the_teacher(tiny, base, own):
    experiment = on(tiny, base, objective=own.Anchored(teacher=Pretrained(str(base))))
    filled = fill(inherit(experiment), tokenizer := Bytes().train([]))
    program = Program(filled, filled.layout.mesh(), tokenizer)
    state = begin(program)
    sums = program.measure(state.params, state.frozen, filled.data.blank(8))  # pyright: ignore[reportAttributeAccessIssue]
    assert float(sums["moved"]) == 0
    same(state.params, restore(base)[2])


def test_a_head_is_drawn_on_a_trunk_of_another_run(tiny, base, own):
    experiment = on(tiny, base, model=Scorer(Inherited()), objective=own.Quiet())
    filled = fill(inherit(experiment), tokenizer := Bytes().train([]))
    program = Program(filled, filled.layout.mesh(), tokenizer)
    params = begin(program).params
    same(params["backbone"], restore(base)[2])
    assert params["head"]["kernel"].shape == (16, 1)


def test_a_head_on_the_trunk_is_trained_whole_beside_adapters(tiny, base, tmp_path):
    """A head of zeros that stayed so would give adapters no gradient: the loss would be ln 2 for ever."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(dict(prompt=f"{i}?", chosen="yes", rejected="no")) for i in range(99)))
    data = Data(JsonLines(str(file)), 16, 8, One("truncate"), presentation=Pairs())
    model = Scorer(Inherited(), head_init=Fill(0.0))
    optimizer = AdamW(learning_rate=0.03, schedule=Constant())
    changes = dict(model=model, data=data, objective=BradleyTerry(), optimizer=optimizer, tuning=Lora(2), steps=12)
    state = train(on(tiny, base, **changes), tmp_path / "run")
    assert {"head.kernel", "head.bias"} == {path for path in leaves(state.params) if not path.startswith("backbone.")}
    adapters = [leaf for path, leaf in leaves(state.params).items() if path.endswith(".up")]
    assert adapters and all(np.asarray(leaf).any() for leaf in adapters)
    first, *_, last = (line["loss"] for line in read(tmp_path / "run" / "metrics.jsonl") if line["split"] == "train")
    assert first < math.log(2) and last < 0.3
    program, tokenizer, params = restore(tmp_path / "run")
    assert evaluate(program, params, data.evaluation(tokenizer))["loss"] < 0.3
    same(params["head"], state.params["head"])
    with pytest.raises(InputError, match=r"trained whole.*export the merged model"):
        export_adapter(tmp_path / "run", tmp_path / "peft")


def test_a_head_gets_an_adapter_if_that_is_asked_for():
    model: Any = Classifier(
        Encoder(Embed(8, 9), Stack((Block(Attention(1, 1, 8, Full()), SwiGLU(8)),), 1)), pooling=Pooler()
    )
    boxed = jax.eval_shape(model.begin, jax.random.key(0))
    key = jax.eval_shape(lambda: jax.random.key(0))
    for tuning, trained in (
        (Lora(2), {"kernel", "bias"}),
        (Lora(2, paths=("pooling.*.kernel",)), {"down", "up", "bias"}),
    ):
        split = functools.partial(tuning.split, boxed=boxed, trunks=model.trunks())
        found = leaves(jax.eval_shape(split, key)[0])
        assert {path.rpartition(".")[2] for path in found if path.startswith("pooling.")} == trained
        assert {"head.kernel", "head.bias"} <= found.keys()


def test_a_tree_is_parted_and_joined():
    whole = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert leaves(whole) == {"a.b": 1, "a.c.d": 2, "e": 3} and tree(leaves(whole)) == whole
    some, others = part(whole, lambda path: path != "a.b"), part(whole, lambda path: path == "a.b")
    assert (some, others) == ({"a": {"c": {"d": 2}}, "e": 3}, {"a": {"b": 1}}) and merge(some, others) == whole


def test_a_path_that_fits_nothing_is_told(tiny):
    with pytest.raises(InputError, match=r"no parameter is called 'norm.scael': did you mean 'norm.scale'"):
        Program(tiny.override({"tuning": Only(("norm.scael",))}), tiny.layout.mesh()).begin()


def test_to_freeze_all_is_refused(tiny):
    with pytest.raises(InputError, match=r"tuning.paths=\('\*',\) are all parameters: nothing would be trained"):
        Program(tiny.override({"tuning": Frozen(("*",))}), tiny.layout.mesh()).begin()


def test_a_teacher_with_another_tokenizer_is_refused(tiny, base, own, tmp_path):
    experiment = tiny.override({"objective": own.Anchored(teacher=Pretrained(str(base)))})
    with pytest.raises(InputError, match="is not the folder of a run"):
        train(experiment.override({"objective.teacher": Pretrained(str(tmp_path))}), tmp_path / "a")
    with pytest.raises(InputError, match="has another tokenizer than this run: let both begin from the same run"):
        train(experiment.override({"tokenizer": Characters()}), tmp_path / "b")
