"""The loader: batches are right, exactly resumable, and the same for any number of workers and processes."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.loader import Mixed, permuted
from llm_jax.data.packing import PACKINGS, BestFit, ConcatThenSplit, One, Packing, Windows
from llm_jax.data.pipeline import Data
from llm_jax.data.presentation import AsIs
from llm_jax.data.sources import Mixture
from llm_jax.data.split import ByHash

EACH: list[Packing] = [Windows(3), ConcatThenSplit(), BestFit(), One("truncate")]


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], name)


def data(words, packing: Packing = EACH[1], **settings) -> Data:
    mixture = Mixture((words(60, 40, seed=1), words(25, 90, seed=2), words(90, 9, seed=3)), (0.5, 0.3, 0.2))
    return dataclasses.replace(Data(mixture, length=32, batch=8, packing=packing, split=ByHash(0.2)), **settings)


def test_every_packing_is_tried_here():
    assert {type(p).__name__ for p in EACH} == set(PACKINGS)


@pytest.mark.parametrize("packing", EACH, ids=str)
def test_batches_hold_what_the_documents_say(words, tokenizer, packing):
    made = data(words, packing)
    bos, eos, pad = (tokenizer.special[name] for name in ("bos", "eos", "pad"))
    documents = {(bos, *tokenizer.encode(d.text()), eos) for d in made.documents("train")}
    inside = {run[i : i + n] for run in documents for n in (1, 2, 3) for i in range(len(run))}
    for batch in itertools.islice(made.train(tokenizer, seed=0), 12):
        assert {k: v.dtype.name for k, v in batch.items()} == dict(
            tokens_BT="int32",
            targets_BT="int32",
            weight_BT="float32",
            segment_BT="int32",
            position_BT="int32",
            bytes_BT="int32",
        )
        assert {v.shape for v in batch.values()} == {(8, 32)}
        for row in range(8):
            tokens, targets, weight, segment, position, size = (batch[name][row] for name in batch)
            real = segment >= 0
            assert np.all(np.diff(np.flatnonzero(real)) == 1) and real[0], "padding comes last"
            assert np.all(tokens[~real] == pad) and not weight[~real].any() and not size[~real].any()
            assert sorted(set(segment[real])) == list(range(segment.max() + 1))
            assert np.all(weight[real] == (targets[real] != bos))
            np.testing.assert_array_equal(size, np.where(real, tokenizer.bytes_V[targets], 0))
            for s in range(segment.max() + 1):
                here = segment == s
                np.testing.assert_array_equal(position[here], np.arange(here.sum()))
                np.testing.assert_array_equal(tokens[here][1:], targets[here][:-1])
                if not isinstance(packing, Windows):
                    assert all(pair in inside for pair in zip(tokens[here], targets[here], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("packing", EACH, ids=str)
def test_a_restored_iterator_goes_on_exactly(words, tokenizer, packing, workers):
    # 20 batches of 8 rows are several epochs of the smaller corpora of the mixture
    made = data(words, packing, workers=workers)
    want = list(itertools.islice(data(words, packing).train(tokenizer, seed=7), 20))
    first, again = (made.train(tokenizer, seed=7) for _ in range(2))
    try:
        for batch in want[:5]:
            equal(next(first), batch)
        state = json.loads(json.dumps(first.save()))
        again.restore(state)
        for batch in want[5:]:
            equal(next(again), batch)
        if workers == 0:
            again.restore(state)
            equal(next(again), want[5])
    finally:
        first.close()
        again.close()


def test_epochs_have_the_same_rows_in_another_order(words, tokenizer):
    made = Data(words(40), length=16, batch=1, packing=One("truncate"), split=ByHash(0.0))
    stream = [tuple(b["tokens_BT"][0]) for b in itertools.islice(made.train(tokenizer, seed=0), 120)]
    epochs = [stream[i : i + 40] for i in (0, 40, 80)]
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2]) and len(set(epochs[0])) == 40
    assert epochs[0] != epochs[1] != epochs[2]
    other = [tuple(b["tokens_BT"][0]) for b in itertools.islice(made.train(tokenizer, seed=1), 40)]
    assert set(other) == set(epochs[0]) and other not in epochs


def test_without_shuffling_rows_come_in_order(words, tokenizer):
    made = Data(words(5), length=50, batch=5, packing=One(), split=ByHash(0.0), shuffle=False)
    batch = next(made.train(tokenizer, seed=0))
    assert [tokenizer.decode(row) for row in batch["tokens_BT"]] == [d.text() for d in made.documents("train")]


@pytest.mark.parametrize("packing", EACH, ids=str)
def test_the_processes_together_get_the_rows_of_one(words, tokenizer, packing):
    made = data(words, packing)
    one = made.train(tokenizer, seed=3)
    four = [made.train(tokenizer, seed=3, process=p, processes=4) for p in range(4)]
    for _ in range(6):
        shares = [next(it) for it in four]
        equal(next(one), {name: np.concatenate([s[name] for s in shares]) for name in shares[0]})
    assert four[2].save() == one.save(), "a state holds for any number of processes"


@pytest.mark.parametrize("packing", EACH, ids=str)
def test_evaluation_has_every_target_once_for_any_number_of_processes(words, tokenizer, packing):
    made = data(words, packing)
    whole = made.evaluation(tokenizer)
    batches = list(whole)
    assert len(batches) == len(whole)
    if packing != One("truncate"):
        learnt = sum(len(tokenizer.encode(d.text())) + 1 for d in made.documents("validation"))
        assert sum(b["weight_BT"].sum() for b in batches) == learnt
        read = sum(len(d.text()) for d in made.documents("validation"))
        assert sum((b["bytes_BT"] * b["weight_BT"]).sum() for b in batches) == read
    for again, batch in zip(whole, batches, strict=True):
        equal(again, batch)
    shares = [list(made.evaluation(tokenizer, process=p, processes=2)) for p in range(2)]
    for batch, a, b in zip(batches, *shares, strict=True):
        equal(batch, {name: np.concatenate([a[name], b[name]]) for name in batch})


def test_evaluation_can_be_limited(words, tokenizer):
    batches = list(data(words).evaluation(tokenizer))
    limited = data(words, evaluation_batches=1).evaluation(tokenizer)
    assert len(batches) > len(limited) == len(list(limited)) == 1
    assert sum(b["weight_BT"].sum() for b in data(words).evaluation(tokenizer, split="train")) > 1000


def test_a_mixture_keeps_its_weights_in_every_stretch():
    mixed = Mixed([0.5, 0.3, 0.2])
    component, number = mixed(np.arange(25_000))
    for part in np.split(component, 250):
        assert np.all(np.abs(np.bincount(part, minlength=3) - [50, 30, 20]) <= 1)
    for c in range(3):
        np.testing.assert_array_equal(number[component == c], np.arange(np.sum(component == c)))


def table(weights, rows):
    """The rows of a mixture whose shares are whole parts of 10,000, written out a period at a time."""
    counts = np.round(np.asarray(weights) / np.sum(weights) * 10_000).astype(int)
    due = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    order = np.argsort(due, kind="stable")
    component = np.repeat(np.arange(len(weights)), counts)[order]
    number = np.concatenate([np.arange(count) for count in counts])[order]
    period, place = np.divmod(rows, len(order))
    return component[place], period * counts[component[place]] + number[place]


@pytest.mark.parametrize(
    "weights", [[2.0], [9.0, 1.0], [1 / 3] * 3, [5, 2.5, 1.25, 1.25], [0.01, 0.99], [0.7, 0.11, 3]]
)
def test_whole_parts_of_a_period_come_as_they_always_did(weights):
    for rows in (np.arange(25_000), 10**10 + np.arange(12_000)):
        np.testing.assert_array_equal(Mixed(weights)(rows), table(weights, rows))


@pytest.mark.parametrize("weights", [[1e-6, 1.0], [1.0, 3e-5, 2.4e-4], [1e-4 / 3, 1, 7], [1e-300, 2.0], [1e300, 1e290]])
def test_a_small_weight_is_not_rounded_up(weights):
    mixed, share = Mixed(weights), np.array(weights) / np.max(weights) / np.sum(np.array(weights) / np.max(weights))
    seen = np.zeros(len(weights), int)
    for begin in range(0, 600_000, 50_000):
        component, number = mixed(np.arange(begin, begin + 50_000))
        for c in range(len(weights)):
            mine = number[component == c]
            np.testing.assert_array_equal(mine, seen[c] + np.arange(len(mine)))
            seen[c] += len(mine)
        assert np.all(np.abs(seen - share * (begin + 50_000)) <= 1)
    np.testing.assert_array_equal(
        mixed(np.array([599_999, 3]))[0], np.concatenate([component[-1:], mixed(np.arange(4))[0][3:]])
    )


@pytest.mark.parametrize("count", [1, 2, 3, 10, 97, 1000, 65_537])
def test_permuted_is_a_permutation(count):
    assert sorted(permuted(np.arange(count), count, (1, 2))) == list(range(count))


def test_permutations_differ_and_are_even():
    seen = np.zeros((7, 7))
    for seed in range(2000):
        seen[np.arange(7), permuted(np.arange(7), 7, (seed, 0))] += 1
    assert np.all(np.abs(seen / 2000 - 1 / 7) < 0.04)
    far = permuted(np.array([0, 2**40 - 1]), 2**40, (0,))
    assert np.all((far >= 0) & (far < 2**40))


CHANGES = [dict(batch=4), dict(length=31), dict(packing=BestFit()), dict(shuffle=False)]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_state_of_another_stream_is_refused(words, tokenizer, change):
    state = data(words).train(tokenizer, seed=0).save()
    with pytest.raises(InputError, match="another stream"):
        data(words, **change).train(tokenizer, seed=0).restore(state)
    with pytest.raises(InputError, match="another stream"):
        data(words).train(tokenizer, seed=1).restore(state)


TRAINING = """
import os, pathlib, signal, sys, threading, time
from llm_jax.core import user_modules
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import TextFiles
from llm_jax.text.recipes import Bytes

if __name__ == "__main__":
    own = pathlib.Path({own!r})
    module = user_modules.load_module(own)
    own.write_text("raise RuntimeError('edited since it was run')")
    data = Data(TextFiles(path={path!r}, separator="."), length=8, batch=2, workers=2, presentation=module.Reversed(3))
    batches = data.train(data.prepare(Bytes()), seed=0)
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    for number in signals:
        signal.signal(number, lambda *_: None)  # what is ignored would be ignored by the workers anyway
    started = threading.Event()

    def send():
        while not started.wait(0.02):
            for number in signals:
                os.killpg(0, number)

    threading.Thread(target=send, daemon=True).start()
    first = next(batches)
    started.set()
    for number in signals:
        os.killpg(0, number)
    more = [next(batches) for _ in range(6)]
    print([batch["reversed_B"].tolist() for batch in [first, *more]], flush=True)
    time.sleep(300)
"""
OWN = """
import dataclasses
import numpy as np
from llm_jax.data.presentation import AsIs

@dataclasses.dataclass(frozen=True)
class Reversed(AsIs):
    times: int

    def __call__(self, batch, length, special, seed_B):
        made = super().__call__(batch, length, special, seed_B)
        return made | dict(reversed_B=np.full(len(seed_B), self.times))
"""


def test_workers_know_the_users_files_outlive_signals_and_end_with_a_training_that_is_killed(tmp_path):
    text, script, own = tmp_path / "text.txt", tmp_path / "training.py", tmp_path / "own.py"
    text.write_text("some words of text. " * 200)
    own.write_text(OWN)
    script.write_text(TRAINING.format(path=str(text), own=str(own)))
    pipes: Any = dict(stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == f"{[[3, 3]] * 7}\n"
    process.kill()
    process.communicate(timeout=60)  # the workers hold its output: it ends when they have ended


UNGUARDED = """
import sys
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import TextFiles
from llm_jax.text.recipes import WordPiece

data = Data(TextFiles(path={path!r}), length=8, batch=2, workers=1)
{first}
batches = data.train(data.prepare(WordPiece(30_000)), seed=0)
next(batches)
"""


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("", "each data worker runs .*/script.py again: put what it does under `if __name__ == .__main__.:`, or set "),
        ("if __name__ != '__main__': sys.exit(3)", "a data worker ended with status 3, for the reason above"),
    ],
)
def test_a_worker_that_dies_is_reported(tmp_path, first, message):
    """Though what the worker is to be sent is more than a pipe holds, and nobody reads it."""
    text, script = tmp_path / "text.txt", tmp_path / "script.py"
    text.write_text(" ".join(f"{i:x}" for i in range(20_000)))
    script.write_text(UNGUARDED.format(path=str(text), first=first))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert re.search(f"InputError: {message}", done.stderr.splitlines()[-1]), done.stderr


def test_what_cannot_be_sent_to_a_worker_is_refused(words, tokenizer):
    @dataclasses.dataclass(frozen=True)
    class Locked(AsIs):
        def __post_init__(self):
            object.__setattr__(self, "lock", threading.Lock())

    batches = dataclasses.replace(data(words, workers=1), presentation=Locked()).train(tokenizer, seed=0)
    with pytest.raises(InputError, match=r"cannot be sent to data\.workers .*lock.*: set data\.workers=0"):
        next(batches)
