"""What experiments are said to show, at full size, of those that take minutes. `make test-slow` runs these."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_jax.runs import metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STRICT = ("XLA_FLAGS", "OMP_NUM_THREADS")  # settings of the tests under which a training would be slow
BASES = {  # what trains on from another run, and from which
    "instructions_tuned": "instructions_base",
    "grpo_arithmetic": "arithmetic_base",
    "ppo_arithmetic": "arithmetic_base",
    "dpo": "dpo_base",
}
SPAM = Path(os.environ.get("LLM_JAX_DATA", ROOT)) / "sms_spam.tsv"
needs_spam = pytest.mark.skipif(not SPAM.is_file(), reason="needs a folder $LLM_JAX_DATA that holds sms_spam.tsv")


def said(*words: str) -> str:
    """What a command prints."""
    environment = {key: value for key, value in os.environ.items() if key not in STRICT}
    command = [sys.executable, "-m", "llm_jax", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """By an experiment's name, the folder of its run; whatever trains on from it begins with the same one."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            base = [f"--set=init_from={folder(BASES[name])}"] if name in BASES else []
            path = tmp_path_factory.mktemp(name)
            said("train", name, f"--workdir={path}", *base)
            made[name] = path
        return made[name]

    return folder


@pytest.fixture(scope="module")
def trained(run):
    """By an experiment's name, the last value of each measure that its training logged, by split."""

    def found(name: str) -> dict[str, dict]:
        measured: dict[str, dict] = {}
        for line in metrics.read(run(name) / "metrics.jsonl"):
            measured.setdefault(line["split"], {}).update(line)
        return measured

    return found


@pytest.mark.parametrize(
    ("name", "split", "measure", "least"),
    [
        ("word2vec_planted", "report", "analogies", 0.95),
        ("word2vec_planted", "report", "similarity", 0.5),
        ("digits_captions", "report", "validation_exact_match", 0.97),
        ("match_verses", "validation", "accuracy", 0.95),
        pytest.param("spam", "validation", "accuracy", 0.97, marks=needs_spam),
        ("instructions_tuned", "report", "validation_exact_match", 0.9),
        ("grpo_arithmetic", "report", "validation_exact_match", 0.9),
        ("ppo_arithmetic", "report", "validation_exact_match", 0.8),
    ],
)
def test_an_experiment_shows_what_it_is_said_to(trained, name, split, measure, least):
    assert trained(name)[split][measure] >= least


def test_statements_alone_teach_next_to_no_instructions(run):
    answers = said(
        "eval", f"--workdir={run('instructions_base')}", "--modules=experiments/instructions_tuned.py",
        "--set=data.source=WordInstructions()", "--set=data.rendering.learn='answers'", "--set=report=(ExactMatch(),)",
    )  # fmt: skip
    found = re.search(r"validation: (\d+)/500 answers exact", answers)
    assert found and int(found[1]) < 25


def test_the_base_of_the_policies_mostly_forgets_to_carry(trained):
    assert 0.2 < trained("arithmetic_base")["report"]["validation_exact_match"] < 0.4


@pytest.mark.parametrize(("name", "furthest"), [("grpo_arithmetic", 3.0), ("ppo_arithmetic", 3.0), ("dpo", 5.0)])
def test_replies_are_better_than_the_bases_and_not_far_from_them(trained, name, furthest):
    """By the 95% interval of the gain on held-out prompts, and in nats a reply."""
    report = trained(name)["report"]
    assert report["reward_gain_low"] > 0 and 0 < report["kl_per_reply"] < furthest
