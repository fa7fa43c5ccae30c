"""Conversations as training data: packed they are learnt as alone, and where nothing is learnt that is said."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llm_jax
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Conversation, Rendering
from llm_jax.data.packing import BestFit, ConcatThenSplit, One
from llm_jax.data.sources import Source
from llm_jax.engine.step import Program
from llm_jax.objectives.objective import cross_entropy
from llm_jax.text.calls import Call
from llm_jax.text.chat import Message


@dataclasses.dataclass(frozen=True)
class Talks(Source):
    """Short talks, some with a call of a tool; with `mute`, those held out have no answers."""

    count: int = 24
    mute: bool = False

    def documents(self) -> Iterator[Conversation]:
        rng = np.random.default_rng(0)
        for number in range(self.count):
            said = [Message("user", f"{number}?" * rng.integers(1, 4))]
            if number % 3 == 0:
                said += [Message("assistant", "", (Call("f", f'{{"x": {number}}}'),)), Message("tool", "yes")]
            said += [Message("assistant", "well, " * rng.integers(1, 4)), Message("user", "ok")]
            yield Conversation((*said, Message("assistant", "bye")))

    def validation(self) -> Iterator[Conversation]:
        for talk in self.documents():
            yield Conversation(talk.messages[:1]) if self.mute else talk


def test_packed_every_token_has_the_loss_that_it_has_alone(tiny, tokenizer):
    tuning = tiny.override({
        "data.source": Talks(), "data.length": 256, "data.batch": 24, "data.rendering": Rendering(learn="answers"),
        "model.context": 256,
    })  # fmt: skip
    model, began = tuning.model, Program(tuning, tuning.layout.mesh()).begin()
    params = jax.tree.map(lambda p: 3 * p, began.params)

    @jax.jit
    def losses(batch):
        score_BTV: Any = model.apply({"params": params}, batch, None, method="predict")
        return cross_entropy(score_BTV, batch["targets_BT"])

    def by_conversation(packing):
        found, shared = {}, 0
        for batch in tuning.override({"data.packing": packing}).data.evaluation(tokenizer):
            loss_BT = np.asarray(losses({name: jnp.asarray(array) for name, array in batch.items()}))
            for row, segment_T in enumerate(batch["segment_BT"]):
                shared = max(shared, segment_T.max())
                for segment in range(segment_T.max() + 1):
                    here = row, segment_T == segment
                    learnt = batch["weight_BT"][here] > 0
                    found[(*batch["targets_BT"][here],)] = loss_BT[here][learnt]
        return found, shared

    packed, most = by_conversation(BestFit("refuse"))
    alone, least = by_conversation(One())
    assert most >= 2 and least == 0 and packed.keys() == alone.keys() and len(alone) == 24
    for targets, loss in alone.items():
        np.testing.assert_allclose(packed[targets], loss, atol=1e-5)
        assert 0 < len(loss) < len(targets) and np.isfinite(loss).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.source": Talks(mute=True)}, "nothing is learnt of the validation documents of Talks.*'answers'"),
        ({"data.packing": BestFit("truncate"), "data.length": 3}, "nothing is learnt in rows of data.length=3"),
    ],
)
def test_where_nothing_is_learnt_training_says_so(tiny, changes, message, tmp_path):
    tuning = tiny.override({"data.source": Talks(), "data.rendering": Rendering(learn="answers")} | changes)
    with pytest.raises(InputError, match=message) as raised:
        llm_jax.train(tuning, tmp_path)
    assert "\n" not in str(raised.value)


@dataclasses.dataclass(frozen=True)
class OneMute(Talks):
    """The seventh talk begins with a question of many rows."""

    def documents(self):
        for number, talk in enumerate(super().documents()):
            long = Message("user", "well? " * 20)
            yield Conversation((long, *talk.messages[1:])) if number == 7 else talk


def test_a_step_with_nothing_to_learn_stops_the_run_at_once_and_again(tiny, tokenizer, tmp_path):
    tuning = tiny.override({
        "data.source": OneMute(), "data.rendering": Rendering(learn="answers"), "data.batch": 1,
        "data.packing": ConcatThenSplit(), "steps": 200, "log_every": 100, "eval_every": 100, "save_every": 1,
    })  # fmt: skip
    batches: Any = tuning.data.train(tokenizer, seed=0)
    mute = next(step for step in range(1, 201) if not next(batches)["weight_BT"].any())
    for _ in range(2):
        with pytest.raises(InputError, match=f"nothing is learnt in step {mute}, every target of its batch") as raised:
            llm_jax.train(tuning, tmp_path)
        assert "\n" not in str(raised.value)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())[-1] == mute - 1 > 0
    whole: Any = tuning.override({"data.packing": BestFit()})
    rows = [next(stream)["weight_BT"].any() for stream in [whole.data.train(tokenizer, seed=0)] for _ in range(200)]
    assert all(rows)
