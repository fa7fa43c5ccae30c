"""Training on from another run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from llm_jax.__main__ import main
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Rendering
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.sources import JsonLines, TextFiles
from llm_jax.engine.init_from import begin, inherit
from llm_jax.engine.restore import restore
from llm_jax.engine.step import Program, fill
from llm_jax.experiment import Experiment
from llm_jax.layers.embedding import Embed
from llm_jax.layers.masks import SlidingWindow
from llm_jax.models.bag_of_tokens import BagOfTokens
from llm_jax.models.heads import Scorer
from llm_jax.models.inherited import Inherited
from llm_jax.models.pretrained import Pretrained
from llm_jax.objectives.next_token import NextToken
from llm_jax.objectives.preferences import BradleyTerry
from llm_jax.reports.winrate import WinRate
from llm_jax.runs.folder import Run
from llm_jax.text.chat import Alpaca, ChatTemplate
from llm_jax.text.kept import Kept
from llm_jax.text.recipes import Bpe
from llm_jax.training.loop import train


@pytest.fixture(scope="module")
def tiny(tiny, tmp_path_factory) -> Experiment:
    """With a source that a manifest may name."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("\n".join(f"{i} and {i + 1} make {2 * i + 1}" for i in range(100)))
    return tiny.override({"data.source": TextFiles(str(path), "\n")})


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory) -> Path:
    """A run of two steps that keeps an average, whose texts do not begin with `bos`."""
    folder = tmp_path_factory.mktemp("base") / "run"
    train(tiny.override({"steps": 2, "ema": 0.9, "data.rendering": Rendering(bos=False)}), folder)
    return folder


def on(tiny: Experiment, base: Path, **changes: Any) -> Experiment:
    start = {"name": "on", "model": Inherited(), "tokenizer": Kept(), "init_from": str(base)}
    return tiny.override(start | changes)


def program_of(experiment: Experiment, vocabulary: Any) -> Program:
    filled = fill(inherit(experiment), vocabulary)
    return Program(filled, filled.layout.mesh())


def test_it_begins_with_the_average_of_the_newest_checkpoint(tiny, base):
    _, tokenizer, average = restore(base)
    program = program_of(on(tiny, base, ema=0.5), tokenizer)
    state = begin(program)
    for found in (state.params, state.average):
        jax.tree.map(np.testing.assert_array_equal, found, average)
    assert int(state.step) == 0
    drawn = program.begin().params
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (drawn, average)), strict=True))
    template = jax.tree.map(lambda leaf: leaf.sharding, program.template.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, state.params) == template


def test_what_a_rendering_leaves_unsaid_comes_along(tiny, base):
    found: Any = inherit(on(tiny, base, **{"data.rendering": Rendering(learn="answers")}))
    assert found.data.rendering == Rendering(False, True, "answers", ChatTemplate(), False)
    assert found.model == tiny.model and found.tokenizer == Kept()


def test_what_a_rendering_says_wins_over_the_other_run(tiny, base):
    for rendering in (Rendering(bos=True, template=Alpaca()), Rendering(True, False, "answers", Alpaca(), True)):
        found: Any = inherit(on(tiny, base, **{"data.rendering": rendering})).data
        told = {name: value for name, value in vars(rendering).items() if value is not None}
        assert found.rendering == dataclasses.replace(
            Rendering(True, True, template=Alpaca(), prompt_eos=False), **told
        )
    typed: Any = on(tiny, base).set(["data.rendering.template=Alpaca()", "data.rendering.eos=False"])
    found = inherit(typed).data
    assert found.rendering == Rendering(False, False, template=Alpaca(), prompt_eos=False)


def test_a_manifest_says_all_of_a_rendering_and_a_resumed_run_keeps_it(tiny, base, tmp_path):
    manifest = json.loads((base / "manifest.json").read_text())["data"]["rendering"]
    assert manifest == {
        "part": "llm_jax.data.documents:Rendering", "bos": False, "eos": True, "learn": "everything",
        "template": {"part": "llm_jax.text.chat:ChatTemplate"}, "prompt_eos": False, "separators": None,
    }  # fmt: skip
    experiment = on(tiny, base, **{"data.rendering": Rendering(bos=True), "steps": 1})
    train(experiment, tmp_path)
    assert inherit(experiment, tmp_path).data.rendering.bos  # pyright: ignore[reportAttributeAccessIssue]
    Run.open(tmp_path, inherit(experiment, tmp_path).manifest()).close()
    with pytest.raises(InputError, match=r"with data\.rendering\.bos=True, not False"):
        Run.open(tmp_path, inherit(experiment.override({"data.rendering.bos": False}), tmp_path).manifest())


def test_it_resumes_to_the_bit_even_when_the_other_run_is_gone(tiny, base, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    experiment = on(tiny, other)
    straight = train(experiment, tmp_path / "straight")
    train(experiment.override({"steps": 3}), tmp_path / "halves")
    shutil.rmtree(other)
    halves = train(experiment, tmp_path / "halves")
    assert int(halves.step) == 6
    same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))  # noqa: E731
    jax.tree.map(same, straight.params, halves.params)
    jax.tree.map(same, straight.optimizer, halves.optimizer)
    manifest = json.loads((tmp_path / "halves" / "manifest.json").read_text())
    assert manifest["init_from"] == str(other) and manifest["model"]["part"].endswith(":Decoder")
    lm_params = restore(tmp_path / "halves")[2]
    jax.tree.map(same, straight.params, lm_params)
    with pytest.raises(InputError, match=f"no folder {other}"):
        train(experiment, tmp_path / "anew")


def test_a_head_on_another_model_is_not_changed_in_passing(tiny, base, tmp_path):
    scorer = on(tiny, base, model=Scorer(Inherited(), bias=False), objective=NextToken())
    first = inherit(scorer, tmp_path)
    with Run.open(tmp_path, first.manifest()) as run:
        (run.checkpoints / "00000001").mkdir()
    assert inherit(scorer, tmp_path) == first
    changed: Any = inherit(scorer.override({"model.bias": True}), tmp_path).model
    assert changed.bias and changed.backbone == tiny.model
    with pytest.raises(InputError, match=r"was made by on with model\.bias=False, not True"):
        Run.open(tmp_path, inherit(scorer.override({"model.bias": True}), tmp_path).manifest())


def test_a_model_of_its_own_must_have_the_same_parameters(tiny, base):
    _, tokenizer, average = restore(base)
    windowed = tiny.override({"model.stack.pattern.0.attention.mask": SlidingWindow(4)}).model
    state = begin(program_of(on(tiny, base, model=windowed), tokenizer))
    jax.tree.map(np.testing.assert_array_equal, state.params, average)
    for path, value, message in (
        ("model.embed.width", 8, r"embed.table is \(272, 16\) in .*, and \(272, 8\) in this experiment"),
        ("model.stack.pattern.0.attention.bias", True, r"key.bias is absent in .*, and \(1, 2, 8\)"),
        ("model.norm.scale", False, r"norm.scale is \(16,\) in .*, and absent in this experiment"),
    ):
        other = tiny.override({path: value}).model
        with pytest.raises(InputError, match=message):
            begin(program_of(on(tiny, base, model=other), tokenizer))


def test_a_bag_of_tokens_begins_with_the_words_of_another_model(tiny, base, caplog):
    _, tokenizer, average = restore(base)
    bag = BagOfTokens(Embed(16, tiny.model.words()))
    pairs = dict(objective=BradleyTerry()) | {"data.packing": One(), "data.presentation": Pairs()}
    params: Any = begin(program_of(on(tiny, base, model=Scorer(bag), **pairs), tokenizer)).params
    np.testing.assert_array_equal(params["backbone"]["embed"]["table"], average["embed"]["table"])
    assert "the model has no place for norm.scale, stack.layers.block_0.attention.key.kernel" in caplog.text
    assert caplog.messages[0].endswith(" more")


def test_what_is_missing_is_told(tiny, base, tmp_path):
    with pytest.raises(InputError, match=r"init_from brings its tokenizer along: set tokenizer=Kept\(\), not Bpe"):
        train(on(tiny, base, tokenizer=Bpe()), tmp_path)
    with pytest.raises(InputError, match="is not the folder of a run"):
        train(on(tiny, tmp_path), tmp_path / "a")
    with pytest.raises(InputError, match=r"tokenizer=Kept\(\) stands for one that comes with a model: set init_from"):
        train(tiny.override({"tokenizer": Kept()}), tmp_path / "b")
    with pytest.raises(InputError, match=r"model=Inherited\(\) stands for the model of a run: set init_from"):
        train(tiny.override({"model": Inherited()}), tmp_path / "c")


def test_a_win_rate_of_runs_that_have_ended_is_measured(tiny, base, tmp_path, capsys):
    """Asked for after the training, and of another judge than one that training has kept."""
    texts, pairs = tmp_path / "prompts.jsonl", tmp_path / "pairs.jsonl"
    texts.write_text("\n".join(json.dumps(dict(prompt=f"{i}+", answer="A")) for i in range(99)))
    pairs.write_text("\n".join(json.dumps(dict(prompt=f"{i}?", chosen="yes", rejected="no")) for i in range(99)))
    data = Data(JsonLines(str(pairs)), 16, 8, One("truncate"), presentation=Pairs())
    judging = dict(model=Scorer(Inherited()), data=data, objective=BradleyTerry(), steps=1)
    train(on(tiny, base, **judging), judge := tmp_path / "judge")
    train(on(tiny, base, steps=1, **{"data.source": JsonLines(str(texts))}), ours := tmp_path / "ours")
    assert not (ours / "frozen").exists()
    report = f"report=(WinRate(Pretrained('{judge}'), Pretrained('{base}'), limit=4, max_tokens=3),)"
    assert main(["llm_jax", "eval", f"--workdir={ours}", f"--set={report}"]) == 0
    said = capsys.readouterr().out
    assert f"{judge} prefers this run to {base} in" in said and "prompts: win rate" in said
    assert main(["llm_jax", "eval", f"--workdir={ours}", f"--set={report}", "--set=data.rendering.bos=True"]) == 2
    assert f"{judge} has data.rendering.bos=False, this run True: let both begin" in capsys.readouterr().err
    told = tiny.override({"report": (WinRate(Pretrained(str(judge)), Pretrained(str(base))),)})
    assert Program(told, told.layout.mesh()).pretrained == {}
