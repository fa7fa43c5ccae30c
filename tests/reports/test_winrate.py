"""Win rates: the judge's scores of both models' replies, computed again one text at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.data.documents import Conversation, Example, Rendering, Text
from llm_jax.engine.trained import Finished
from llm_jax.inference.language_model import LanguageModel
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Scorer
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.objectives.preferences import Dpo
from llm_jax.optim.precision import Precision
from llm_jax.reports.statistics import wilson
from llm_jax.reports.winrate import WinRate
from llm_jax.text.chat import Message
from llm_jax.text.recipes import Bytes

TOKENIZER = Bytes().train([])
MODEL = Decoder(Embed(8, TOKENIZER.vocabulary), Stack((Block(Attention(1, 1, 8), FeedForward(8)),), 1), context=32)
SCORER = Scorer(MODEL.clone())
TALKS = [
    Conversation((Message("user", f"say {i}"), Message("assistant", "no"), Message("user", "?"))) for i in range(9)
]
TASKS = [Example(f"{i}+{i}=", str(2 * i)) for i in range(12)]


def drawn(model: Any, seed: int, scale: float = 4.0) -> Any:
    params = jax.jit(lambda key: nn.meta.unbox(model.begin(key)))(jax.random.key(seed))
    return jax.tree.map(lambda x: scale * x, params)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return {"own": drawn(MODEL, 0), "other": drawn(MODEL, 1), "judge": drawn(SCORER, 2, 1.0)}


def finished(params: dict[str, Any], documents: list[Any]) -> Any:
    data = SimpleNamespace(rendering=Rendering(), documents=lambda split: documents, labels=None)
    experiment: Any = SimpleNamespace(model=MODEL, precision=Precision(), data=data, objective=Dpo())
    experiment.override = lambda changes: SimpleNamespace(**vars(experiment) | changes)
    frozen = dict(pretrained={"runs/other": params["other"], "runs/judge": params["judge"]})
    return Finished(experiment, TOKENIZER, params["own"], frozen)


def report(**settings: Any) -> WinRate:
    judge, against = Pretrained("runs/judge", SCORER), Pretrained("runs/other", MODEL)
    given: dict[str, Any] = dict(max_tokens=6, batch=4) | settings
    return WinRate(judge, against, **given)


def test_the_numbers_are_the_judges_of_greedy_replies(params):
    found = report(temperature=0.0)(finished(params, TASKS))
    lms = {name: LanguageModel(MODEL, params[name], TOKENIZER) for name in ("own", "other")}

    def scores(name: str, ids: list[int]) -> np.ndarray:
        padded = np.zeros((1, 16), np.int32)  # to one length: one program is compiled
        padded[0, : len(ids)] = ids
        return lms[name].logits(padded)[0, len(ids) - 1].copy()

    rewards, ended = [], []
    for name in ("own", "other"):
        begin = TOKENIZER.special["bos"]
        said = []
        for task in TASKS:
            ids = [begin, *TOKENIZER.encode(task.prompt)]
            for _ in range(6):
                score_V = scores(name, ids)
                score_V[sorted(TOKENIZER.beside - TOKENIZER.ends)] = -np.inf
                ids.append(int(score_V.argmax()))
                if ids[-1] in TOKENIZER.ends:
                    break
            ended.append(ids[-1] in TOKENIZER.ends)
            answer = TOKENIZER.encode(TOKENIZER.decode(ids[1 + len(TOKENIZER.encode(task.prompt)) :]))
            end = [TOKENIZER.special["eos"]] * ended[-1]  # a reply that is cut off has none
            read = [begin, *TOKENIZER.encode(task.prompt), *answer, *end]
            one: Any = SCORER.apply({"params": params["judge"]}, np.array([read], np.int32), method="reward")
            said.append(float(one[0]))
        rewards.append(np.array(said))
    gain_N = rewards[0] - rewards[1]
    wins = (gain_N > 0).sum() + (gain_N == 0).sum() / 2
    wanted = dict(win_rate=wins / 12, reward=rewards[0].mean(), reward_gain=gain_N.mean())
    wanted |= dict(truncated=1 - np.mean(ended[:12]), reward_ties=(gain_N == 0).mean())
    wanted |= dict(zip(("win_rate_low", "win_rate_high"), wilson(wins, 12), strict=True))
    assert found.metrics == pytest.approx(wanted, abs=1e-4) and 0 < wanted["win_rate"] < 1
    error = 1.959964 * gain_N.std(ddof=1) / 12**0.5
    assert f"runs/judge prefers this run to runs/other in {wins:g} of 12 prompts" in found.lines[0]
    assert f"{wanted['truncated']:.1%} and {1 - np.mean(ended[12:]):.1%} cut off" in found.lines[1]
    assert f"(95%: ±{error:.3f})" in found.lines[1] and len(found.lines) == 2 + any(gain_N == 0) + 2 * 4


def test_a_model_against_itself_ties_and_prompts_count_once(params):
    same = finished(params | {"other": params["own"]}, [*TASKS, *TASKS, Text("no prompt")])
    found = report()(same)
    assert found.metrics["win_rate"] == 0.5 and found.metrics["reward_gain"] == 0 and "6 of 12" in found.lines[0]
    assert "of 5 prompts" in report(limit=5)(same).lines[0] and not any("left_out" in name for name in found.metrics)
    long = [Example(str(i) * 40, "0") for i in range(3)]
    told = report()(finished(params | {"other": params["own"]}, [*TASKS[:2], *long, *long, *TASKS[2:]]))
    assert told.lines[2] == "  3 of 15 prompts leave no room for max_tokens=6: they are left out"
    assert told.metrics == found.metrics | dict(validation_left_out=3)
    assert found.metrics["reward_ties"] == 1 and "in 100.0% of the prompts both have the same reward" in found.lines[2]
    alone = report(limit=1)(finished(params, TASKS))
    assert "(one prompt has no interval)" in alone.lines[1] and all(map(np.isfinite, alone.metrics.values()))


def test_a_conversation_is_asked_for_the_reply_at_its_end(params):
    found = report(show=1)(finished(params, TALKS))
    assert "of 9 prompts" in found.lines[0] and found.lines[3] == "  prompt   ?"
    answered = [Conversation((*talk.messages, Message("assistant", "no"))) for talk in TALKS]
    assert report(show=1)(finished(params, answered)).lines == found.lines


def test_refusals(params):
    with pytest.raises(InputError, match="the validation documents have none"):
        report()(finished(params, [Text("a"), Example("x" * 40, "y")]))
    told = Finished(finished(params, TASKS).experiment, TOKENIZER, params["own"], None)
    with pytest.raises(InputError, match="does not keep the parameters of runs/judge"):
        report()(told)
    with pytest.raises(InputError, match="the model of runs/judge must be"):
        WinRate(Pretrained("runs/judge", MODEL), Pretrained("runs/other", MODEL))(finished(params, TASKS))
