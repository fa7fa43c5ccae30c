"""Killed at any moment and run again with the same command, a training ends as if nothing had happened, to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from llm_jax.core.workers import SIGNALS
from llm_jax.runs import metrics

ROOT = Path(__file__).parents[2]
STEPS = 60
FILE = '''
"""Is a run that was killed the same run?"""

from llm_jax.data.packing import BestFit
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Mixture, PythonHelp, TextFiles
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.next_token import NextToken
from llm_jax.parallel.layout import Layout
from llm_jax.text.recipes import Bytes
from llm_jax.optim.optimizers import AdamW, Cosine
from llm_jax.optim.precision import Precision


def experiment():
    block = Block(Attention(1, 2, 8, dropout=0.1), SwiGLU(16), dropout=0.1)
    texts = TextFiles({texts!r}, separator="\\n")
    return Experiment(
        model=Decoder(Embed(16, dropout=0.1), Stack((block,), 1)),
        tokenizer=Bytes(),
        data=Data(Mixture((texts, PythonHelp()), (2.0, 1.0)), length=32, batch=8, packing=BestFit(),
                  evaluation_batches=2, workers={workers}),
        objective=NextToken(),
        optimizer=AdamW(schedule=Cosine(warmup=5)),
        layout=Layout(),
        precision=Precision(),
        steps={steps},
        microbatches=2,
        ema=0.9,
        log_every=3,
        eval_every=5,
        save_every=2,
    )
'''

ROLLOUTS = '''
"""Is a policy that was killed the same policy, also between the updates on one rollout?"""

import dataclasses

import numpy as np

from llm_jax.data.files import JsonLines
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Scorer
from llm_jax.models.stack import Stack
from llm_jax.objectives.divergence import AdaptiveKl
from llm_jax.objectives.ppo import Ppo
from llm_jax.objectives.rewards import Reward
from llm_jax.parallel.layout import Layout
from llm_jax.text.recipes import Bytes
from llm_jax.optim.optimizers import AdamW, Cosine
from llm_jax.optim.precision import Precision
from llm_jax.rl.rollouts import Rollouts


@dataclasses.dataclass(frozen=True)
class Capitals(Reward):
    """The share of bytes below 128 that are capitals, roughly."""

    def __call__(self, prompts, completions, examples):
        return np.array([sum(letter.isupper() for letter in text) for text in completions], np.float64)


def experiment():
    def decoder():
        return Decoder(Embed(16), Stack((Block(Attention(1, 2, 8), SwiGLU(16)),), 1))

    return Experiment(
        model=ActorCritic(decoder(), Scorer(decoder())),
        tokenizer=Bytes(),
        data=Rollouts(JsonLines({texts!r}), length=20, batch=8, group=4, batches=2, updates=2, max_tokens=6,
                      rewards=(Capitals(),), evaluation_batches=1),
        objective=Ppo(kl=AdaptiveKl(0.1, target=0.01)),
        optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(warmup=5)),
        layout=Layout(1),
        precision=Precision(),
        steps={steps},
        microbatches=2,
        log_every=3,
        eval_every=5,
        save_every=3,
    )
'''


STAGE = '''
"""Is a stage that goes on from another run the same after it was killed?"""

from llm_jax.core.quantized import Nf4
from llm_jax.data.denoising import Denoising, SpanCorruption
from llm_jax.data.documents import Rendering
from llm_jax.data.examples import SourceAndTarget, TwoTexts
from llm_jax.data.files import JsonLines
from llm_jax.data.noising import Masked
from llm_jax.data.packing import BestFit, One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.presentation import WithLabel
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Tied
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import NoNorm, RMSNorm
from llm_jax.layers.positions import Sinusoidal
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import Classifier, Scorer
from llm_jax.models.inherited import Inherited
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side
from llm_jax.objectives.classification import Classification
from llm_jax.objectives.contrastive import Contrastive
from llm_jax.objectives.distillation import Distillation
from llm_jax.objectives.masked import MaskedTokens
from llm_jax.objectives.next_token import NextToken
from llm_jax.objectives.policy import Grpo
from llm_jax.objectives.preferences import BradleyTerry, Dpo
from llm_jax.parallel.layout import Layout
from llm_jax.text.kept import Kept
from llm_jax.text.recipes import Bytes
from llm_jax.optim.optimizers import AdamW, Cosine
from llm_jax.optim.precision import Precision
from llm_jax.rl.rollouts import Rollouts
from llm_jax.optim.trainable import Lora

base, texts = {base!r}, {texts!r}
reads = Block(Attention(1, 2, 8, mask=Full()), SwiGLU(16), dropout=0.1)
writes = Block(Attention(1, 2, 8), SwiGLU(16), dropout=0.1, cross=CrossAttention(1, 2, 8))
encoder = Encoder(Embed(16), Stack((reads,), 1), head=Tied())
sides = (Side(Stack((block,), 1), Sinusoidal(), RMSNorm(), NoNorm()) for block in (reads, writes))
translator = EncoderDecoder(Embed(16), *sides)
pairs = Data(JsonLines(texts), length=24, batch=8, packing=One("truncate"), presentation=Pairs())
answers = Rendering(learn="answers")


def data(**settings):
    return Data(JsonLines(texts), length=24, batch=8, **settings)


def experiment():
    common = dict(
        tokenizer=Bytes(sentinels=8),
        optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(warmup=5)),
        layout=Layout(1),
        precision=Precision(),
        steps={steps},
        ema=0.9,
        log_every=3,
        eval_every=5,
        save_every=2,
    )
    return Experiment(**(common | dict({settings})))
'''
STAGES = {  # what differs; some begin from another run
    "tuned": "init_from=base, model=Inherited(), tokenizer=Kept(), data=pairs, objective=Dpo(), "
    "tuning=Lora(2, also=('norm.scale',))",
    "quantised": "init_from=base, model=Inherited(), tokenizer=Kept(), data=data(rendering=answers), "
    "objective=NextToken(), tuning=Lora(2, base=Nf4(16))",
    "reward": "init_from=base, model=Scorer(Inherited()), tokenizer=Kept(), data=pairs, objective=BradleyTerry()",
    "grpo": "init_from=base, model=Inherited(), tokenizer=Kept(), objective=Grpo(), ema=0.0, "
    "data=Rollouts(JsonLines(texts), length=24, batch=8, group=4, max_tokens=6, evaluation_batches=1)",
    "distilled": "data=data(), objective=Distillation(Pretrained(base)), tokenizer=Bytes(), "
    "model=Decoder(Embed(16), Stack((Block(Attention(1, 2, 8), SwiGLU(16)),), 1))",
    "masked": "model=encoder, data=data(presentation=Masked(0.3, whole_words=True)), objective=MaskedTokens()",
    "denoised": "model=translator, objective=NextToken(smoothing=0.1), "
    "data=data(packing=One('split'), presentation=Denoising(SpanCorruption(0.3, 2.0), 24))",
    "translated": "model=translator, objective=NextToken(), data=data(packing=BestFit('truncate'), rendering=answers, "
    "presentation=SourceAndTarget(24))",
    "contrastive": "model=encoder, objective=Contrastive(), microbatches=2, "
    "data=data(packing=One('truncate'), rendering=answers, presentation=TwoTexts())",
    "classified": "model=Classifier(encoder, classes=2), objective=Classification(), "
    "data=data(packing=One('truncate'), presentation=WithLabel())",
}


def record(stage: str, i: int) -> dict[str, Any]:
    if stage in ("tuned", "reward"):
        return dict(prompt=f"{i}, ", chosen="A", rejected="b")
    if stage in ("distilled", "masked", "denoised"):
        return dict(text=f"{i} is followed by {i + 1}")
    if stage == "classified":
        return dict(text=f"{i} is a number", label=i % 2)
    return dict(prompt=f"{i}, ", answer=f"A{i + 1}")


class Runs:
    """Trainings of one experiment in processes of their own, which share what was compiled."""

    def __init__(self, folder: Path, file: str = FILE, stage: str = "", **values: Any):
        self.folder = folder
        texts = folder / "texts.jsonl"
        if file == FILE:
            texts.write_text("\n".join(f"{i} is followed by {i + 1}" for i in range(400)))
        else:
            texts.write_text("\n".join(json.dumps(record(stage, i)) for i in range(40)))
        self.file = folder / "killed.py"
        values |= dict(texts=str(texts), steps=STEPS, settings=STAGES.get(stage))
        self.file.write_text(file.format(**values))
        self.environment = os.environ | {"LLM_JAX_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}

    def command(self, name: str) -> list[str]:
        return [sys.executable, "-m", "llm_jax", "train", str(self.file), f"--workdir={self.folder / name}"]

    def start(self, name: str, *flags: str) -> subprocess.Popen:
        pipes: Any = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        return subprocess.Popen([*self.command(name), *flags], cwd=ROOT, env=self.environment, text=True, **pipes)

    def finish(self, name: str) -> str:
        done = subprocess.run(self.command(name), cwd=ROOT, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen) -> None:
        """Until a step was logged that is `step` or later, or the process has ended."""
        while process.poll() is None and max((line["step"] for line in self.logged(name)), default=0) < step:
            time.sleep(0.02)

    def logged(self, name: str) -> list[dict]:
        path = self.folder / name / "metrics.jsonl"
        return metrics.read(path) if path.exists() else []

    def ends_as(self, name: str, other: str) -> None:
        """Every saved array, the place in the data, and every metric but the timings are the same."""
        timings = ("tokens_per_second", "mfu")
        logged = [self.logged(n) for n in (name, other)]
        said = [self.folder / n / "completions.jsonl" for n in (name, other)]
        assert said[0].exists() == said[1].exists()
        assert not said[0].exists() or said[0].read_bytes() == said[1].read_bytes()
        plain = [[{k: v for k, v in line.items() if k not in timings} for line in lines] for lines in logged]
        assert plain[0] == plain[1]
        assert plain[0][-1]["step"] == STEPS
        ends = [self.folder / n / "checkpoints" / f"{STEPS:08d}" for n in (name, other)]
        assert json.loads((ends[0] / "data.json").read_text()) == json.loads((ends[1] / "data.json").read_text())
        states = [ocp.load(str(end)) for end in ends]
        assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
        assert len(jax.tree.leaves(states[0])) > 30
        jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    made = Runs(tmp_path_factory.mktemp("resume"), workers=0)
    made.finish("whole")
    return made


def kill_at_random(runs: Runs, name: str, kills: int, seed: int) -> int:
    """Kills at a random moment after a random step, saves included; then lets it end. Returns the kills that struck."""
    rng, struck = random.Random(seed), 0
    for nth in range(kills):
        process = runs.start(name)
        runs.wait_for_step(name, int(STEPS * (nth + rng.random()) / kills), process)
        time.sleep(rng.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        struck += process.returncode == -signal.SIGKILL
    runs.finish(name)
    return struck


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_sigkill_changes_nothing(runs):
    assert kill_at_random(runs, "killed", 3, seed=0) >= 2
    runs.ends_as("killed", "whole")


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_sigkill_changes_no_rollout(tmp_path):
    runs = Runs(tmp_path, ROLLOUTS)
    runs.finish("whole")
    between = json.loads((tmp_path / "whole" / "checkpoints" / f"{STEPS - 3:08d}" / "data.json").read_text())
    assert between["rollout"] and between["kl_coefficient"] != 0.1, "it was saved between the updates on one rollout"
    assert kill_at_random(runs, "killed", 2, seed=2) == 2
    runs.ends_as("killed", "whole")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("stage", STAGES)
def test_sigkill_changes_no_stage(runs, tmp_path, stage):
    ended = Runs(tmp_path, STAGE, stage, base=str(runs.folder / "whole"))
    ended.finish("whole")
    assert kill_at_random(ended, "killed", 3, seed=2) >= 2
    ended.ends_as("killed", "whole")


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize("number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in SIGNALS[::2])])
def test_a_signal_saves_and_the_same_command_goes_on(runs, number):
    """As a terminal and schedulers send it: to the whole group, data workers too."""
    name = number.name
    process = runs.start(name, "--set=data.workers=1")
    runs.wait_for_step(name, 6, process)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number, err
    assert "finishing this step and saving" in err and "Traceback" not in err
    assert "stopped and saved at step" in out and "what next" not in out
    stopped = max(int(p.name) for p in (runs.folder / name / "checkpoints").iterdir())
    assert f"going on from step {stopped}" in runs.finish(name)
    runs.ends_as(name, "whole")
    assert f"going on from step {STEPS}" in runs.finish(name)  # once more changes nothing
    runs.ends_as(name, "whole")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore:Sharding info not provided")
@pytest.mark.parametrize(("workers", "file"), [(0, FILE), (2, FILE), (0, ROLLOUTS)], ids=["0", "2", "rollouts"])
def test_twenty_sigkills_change_nothing(tmp_path, workers, file):
    runs = Runs(tmp_path, file, workers=workers)
    runs.finish("whole")
    assert kill_at_random(runs, "killed", 20, seed=1) >= 18
    runs.ends_as("killed", "whole")
