"""What experiments are said to show, at full size, of those that take a minute or two. `make test-slow` runs these."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_jax.training import metrics

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STRICT = ("XLA_FLAGS", "OMP_NUM_THREADS")  # settings of the tests under which a training would be slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """By an experiment's name, the last value of each measure that its training logged, by split."""
    made: dict[str, dict[str, dict]] = {}

    def found(name: str) -> dict[str, dict]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            command = [sys.executable, "-m", "llm_jax", "train", name, f"--workdir={folder}"]
            environment = {key: value for key, value in os.environ.items() if key not in STRICT}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            made[name] = {}
            for line in metrics.read(folder / "metrics.jsonl"):
                made[name].setdefault(line["split"], {}).update(line)
        return made[name]

    return found


@pytest.mark.parametrize(
    ("name", "split", "measure", "least"),
    [
        ("word2vec_planted", "report", "analogies", 0.95),
        ("word2vec_planted", "report", "similarity", 0.5),
        ("digits_captions", "report", "validation_exact_match", 0.97),
        ("match_verses", "validation", "accuracy", 0.95),
    ],
)
def test_an_experiment_shows_what_it_is_said_to(trained, name, split, measure, least):
    assert trained(name)[split][measure] >= least
