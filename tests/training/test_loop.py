"""What a training leaves behind."""

import dataclasses
import json
from typing import Any

import pytest

from llm_jax.core.errors import InputError
from llm_jax.engine.evaluation import best_mode, evaluate
from llm_jax.engine.restore import restore
from llm_jax.experiment import Report
from llm_jax.reports.text import Compression
from llm_jax.training.loop import train


@dataclasses.dataclass(frozen=True)
class Refusing(Report):
    """Cannot be made, which is known before the first step or after the last."""

    early: bool

    def check(self, planned):
        assert planned.params is None and planned.experiment.report and planned.tokenizer.vocabulary
        if self.early:
            raise InputError("this is no run for it")

    def __call__(self, finished):
        raise InputError("the run has come to nothing")


def test_a_checkpoint_says_of_which_step_its_metrics_are_and_the_best_is_measured(tiny, tmp_path, capsys):
    wanted = tiny.override({"steps": 9, "eval_every": 6, "save_every": 4, "keep_last": 9, "best_by": "acuracy"})
    wanted = wanted.override({"best_mode": "max"})
    with pytest.raises(InputError, match=r"measures no 'acuracy': did you mean 'accuracy'\? \(step 6 is saved"):
        train(wanted, tmp_path)
    changes = {"best_by": "accuracy", "best_mode": None, "report": (Refusing(False), Compression())}
    wanted = wanted.override(changes)
    train(wanted, tmp_path)
    assert "save_every=4 is no multiple of eval_every=6: " in (said := capsys.readouterr().out)
    assert "(the last step)" in said
    assert "the report Refusing cannot be made: the run has come to nothing\n" in said
    assert "xz -9e packs" in said, "the others are made, and the training has ended well"
    kept = {int(path.name): json.loads((path / "metrics.json").read_bytes()) for path in tmp_path.glob("checkpoints/*")}
    assert {step: metrics.get("step") for step, metrics in kept.items()} == {4: None, 6: 6, 8: 6, 9: 9}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in lines[-2:]] == ["validation", "report"]
    logged = {line["step"]: line for line in lines if line["split"] == "validation"}
    for step in (6, 9):
        assert kept[step] == {name: value for name, value in logged[step].items() if name != "split"}
    best = max((6, 9), key=lambda step: logged[step]["accuracy"])
    program, tokenizer, params = restore(
        tmp_path, modules=(type(tiny.data.source).__module__, __name__), checkpoint="best"
    )
    data: Any = program.experiment.data
    found = evaluate(program, params, data.evaluation(tokenizer), program.frozen)
    assert found == pytest.approx({name: logged[best][name] for name in found}, rel=1e-6)


def test_reports_are_checked_before_the_first_step(tiny, tmp_path):
    wanted = tiny.override({"report": (Compression(), Refusing(True))})
    with pytest.raises(InputError, match=r"report\.1, Refusing: this is no run for it"):
        train(wanted, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_which_value_of_a_metric_is_the_best(tiny):
    assert best_mode(tiny) == "min" and best_mode(tiny.override({"best_by": "accuracy"})) == "max"
    with pytest.raises(InputError, match="best_mode='min' or best_mode='max'"):
        best_mode(tiny.override({"best_by": "kl"}))
    assert best_mode(tiny.override({"best_by": "kl", "best_mode": "min"})) == "min"
