"""A run that goes on with another number of steps."""

import json

import pytest

from llm_jax.core.errors import InputError
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.schedules import Constant, Cosine, Linear
from llm_jax.runs import metrics
from llm_jax.runs.resume import resumed
from llm_jax.training.loop import train


def folder(tmp_path, experiment, newest):
    """As if the experiment had been trained so far."""
    (tmp_path / "manifest.json").write_text(json.dumps(experiment.manifest()))
    for step in (newest - 1, newest):
        (tmp_path / "checkpoints" / f"{step:08d}").mkdir(parents=True)
    return tmp_path


def rates(workdir):
    return [line["learning_rate"] for line in metrics.read(workdir / "metrics.jsonl") if line["split"] == "train"]


def test_more_steps_keep_the_schedule_and_fewer_than_there_are_change_nothing(tiny, tmp_path, capsys):
    """Of Linear: after 4 steps the rate is at its last share, where one of 8 steps would have half of it."""
    changes = {"optimizer": AdamW(1e-2, Linear(warmup=0, last=0.1)), "log_every": 1, "eval_every": 9, "save_every": 9}
    short = tiny.override(changes | {"steps": 4})
    train(short, tmp_path)
    capsys.readouterr()
    train(short.override({"steps": 8}), tmp_path)
    assert (
        "steps=8, before 4: the learning rate keeps its schedule of 4 steps: 0.001 in step 5, 0.001 in the last. For "
        "one of 8 steps set schedule_steps=8: 0.0055 in step 5"
    ) in capsys.readouterr().out
    assert rates(tmp_path) == pytest.approx([0.01, 0.00775, 0.0055, 0.00325, *[0.001] * 4])
    kept = (tmp_path / "manifest.json").read_text()
    assert json.loads(kept)["schedule_steps"] == 4
    with pytest.raises(InputError, match=r"is at step 8, beyond steps=6, and is left as it is: set steps=8 or more"):
        train(short.override({"steps": 6}), tmp_path)
    assert (tmp_path / "manifest.json").read_text() == kept and len(rates(tmp_path)) == 8


def test_the_same_command_again_says_nothing_and_keeps_what_was_kept(tiny, tmp_path):
    experiment = tiny.override({"optimizer": AdamW(1e-2, Cosine(warmup=2)), "steps": 40})
    longer = experiment.override({"steps": 80})
    kept, said = resumed(longer, folder(tmp_path, experiment, 40))
    assert kept.schedule_steps == 40 and "schedule_steps=80: 0.005" in said  # 0.1 + 0.9 (1 + cos(38 / 78 pi)) / 2
    (tmp_path / "manifest.json").write_text(json.dumps(kept.manifest()))
    assert resumed(longer, tmp_path) == (kept, "")
    back, _ = resumed(experiment, tmp_path)
    assert back.schedule_steps is None, "40 steps are the schedule's own"


def test_another_schedule_that_is_asked_for_is_taken_and_mentioned(tiny, tmp_path):
    experiment = tiny.override({"optimizer": AdamW(1e-2, Linear(warmup=0, last=0.0)), "steps": 40})
    workdir = folder(tmp_path, experiment, 20)
    kept, said = resumed(experiment.override({"steps": 80, "schedule_steps": 80}), workdir)
    assert kept.schedule_steps is None and said == (
        "schedule_steps=80, before 40: the learning rate is 0.0075 in step 21, 0.000125 in the last; by the old "
        "schedule it would be 0.005 in step 21"
    )
    assert resumed(experiment.override({"schedule_steps": 40}), workdir) == (experiment, "")


def test_fewer_steps_beyond_the_checkpoint_keep_the_schedule_too(tiny, tmp_path):
    experiment = tiny.override({"optimizer": AdamW(1e-2, Linear(warmup=0, last=0.0)), "steps": 40})
    kept, said = resumed(experiment.override({"steps": 30}), folder(tmp_path, experiment, 20))
    assert kept.schedule_steps == 40 and said.startswith("steps=30, before 40: the learning rate keeps its schedule")


def test_what_has_no_end_has_nothing_to_say(tiny, tmp_path):
    experiment = tiny.override({"optimizer": AdamW(schedule=Constant(warmup=3)), "steps": 40})
    assert resumed(experiment.override({"steps": 80}), folder(tmp_path, experiment, 40))[1] == ""
    assert resumed(experiment, tmp_path / "new") == (experiment, "")
