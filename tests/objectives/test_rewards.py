"""Plain functions as rewards: in Python and by name, trained with, resumed, and only those that the user trusts."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.__main__ import main
from llm_jax.core.errors import InputError
from llm_jax.core.serialization import from_json, parse, to_json
from llm_jax.core.user_modules import load_module
from llm_jax.data.documents import Conversation, Example, Preference
from llm_jax.objectives import rewards
from llm_jax.objectives.reward import Reward, scores
from llm_jax.objectives.rewards import ExactAnswer, Function, as_reward
from llm_jax.runs.metrics import read
from llm_jax.text.chat import Message

FILE = '''
"""Does a policy learn to be brief?"""

import llm_jax
from llm_jax.data.files import JsonLines
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.policy import Grpo
from llm_jax.objectives.rewards import ExactAnswer
from llm_jax.text.recipes import Bytes
from llm_jax.rl.rollouts import Rollouts


def brevity(prompts, completions, examples, limit, completion_lengths, completion_ended):
    assert len(prompts) == len(completions) == len(examples) and examples[0].answer == "A"
    assert limit == [int(prompt[:-1]) % 3 for prompt in prompts]
    assert all(1 <= length <= 3 for length in completion_lengths), "with the token that ends it"
    assert all(length == 3 or ended for length, ended in zip(completion_lengths, completion_ended))
    return [-len(text) for text in completions]


def experiment():
    data = Rollouts(JsonLines("PROMPTS"), length=12, batch=4, group=2, max_tokens=3, evaluation_batches=1)
    return llm_jax.get("small_gpt").override({
        "model": Decoder(Embed(8), Stack((Block(Attention(1, 1, 8), SwiGLU(8)),), 1)),
        "tokenizer": Bytes(), "data": data, "data.rewards": (ExactAnswer(), brevity), "objective": Grpo(),
        "layout.data": 1, "steps": 2, "log_every": 1, "eval_every": 2, "save_every": 2, "report": (),
    })
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brief")
    records = [dict(prompt=f"{i}+", answer="A", limit=i % 3) for i in range(99)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)))
    path = folder / "brief_replies.py"
    path.write_text(FILE.replace("PROMPTS", str(folder / "prompts.jsonl")))
    return path


def test_a_function_of_a_users_file_rewards_and_the_run_resumes(file, tmp_path, monkeypatch, capsys):
    command = ["llm_jax", "train", str(file), f"--workdir={tmp_path}"]
    assert main(command) == 0, capsys.readouterr().err
    kept = json.loads((tmp_path / "manifest.json").read_text())["data"]["rewards"][1]
    assert kept == {"part": "llm_jax.objectives.rewards:Function", "name": "user_brief_replies:brevity"}
    monkeypatch.setattr(rewards, "GIVEN", {})  # as in a process that was handed no function
    named = f"--set=data.rewards=(ExactAnswer(), Function('{file}:brevity'))"
    assert main([*command, named, "--set=steps=4"]) == 0, capsys.readouterr().err
    assert "going on from step 2" in capsys.readouterr().out
    lines = read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
    for line in lines:
        assert line["reward"] == pytest.approx(line["reward_ExactAnswer_0"] + line["reward_brevity_1"])
        assert line["reward_brevity_1"] <= 0
    assert main(["llm_jax", "eval", f"--workdir={tmp_path}", f"--modules={file}"]) == 0


def test_a_name_stands_for_the_function(file):
    brevity = load_module(file).brevity
    made = as_reward(brevity)
    assert made == Function(f"{file}:brevity") == from_json(to_json(made)) == parse(f"Function('{file}:brevity')")
    assert made.called() == "brevity" and as_reward(ExactAnswer()) == ExactAnswer()


def within(prompts, completions, examples):
    return [len(text) for text in completions]


def test_a_function_of_any_module_may_be_handed_over_in_python():
    np.testing.assert_array_equal(as_reward(within)([], ["a", "bcd"], []), [1.0, 3.0])


def told_of(prompts, completions, examples, nums, completion_lengths, completion_ended, level: Any = 1):
    return [sum(n) * k + e - l for n, k, e, l in zip(nums, completion_lengths, completion_ended, level, strict=True)]


def told_of_all(prompts, completions, examples, answer, **columns):
    assert columns.keys() == {"completion_ended", "completion_lengths", "nums", "source"}
    return [float(a in c and s == "s") for a, c, s in zip(answer, completions, columns["source"], strict=True)]


def test_a_reward_asks_for_columns_by_name():
    """And is given copies, with its own default where a record has no such field."""
    examples = [
        Conversation((Message("user", "q"),), answer="4", columns=dict(nums=[1, 2], level=7, source="s")),
        Example("q", "5", columns=dict(nums=[3], source="t")),
        Preference((Message("user", "q"),), "a", "b", columns=dict(nums=[], source="s", answer="6", level=0)),
    ]
    given = ["q"] * 3, ["4", "5", "6 or 7"], examples
    told = dict(completion_lengths=[2, 3, 4], completion_ended=[True, False, True])
    assert scores(as_reward(told_of), *given, told).tolist() == [3 * 2 + 1 - 7, 3 * 3 + 0 - 1, 0 + 1 - 0]
    assert scores(as_reward(told_of_all), *given, told).tolist() == [1, 0, 1]

    @dataclasses.dataclass(frozen=True)
    class Spoiling(Reward):
        weight: float

        def __call__(self, prompts, completions, examples, nums: list[list[int]] = []):  # noqa: B006
            found = [self.weight * len(each) for each in nums]
            [each.clear() for each in nums]
            return found

    for _ in range(2):
        assert scores(Spoiling(0.5), *given).tolist() == [1, 0.5, 0]
    with pytest.raises(InputError, match=r"told_of asks for 'completion_lengths', which 3 of 3 prompts have not"):
        scores(as_reward(told_of), *given)


def asks_in_vain(prompts, completions, examples, numbers):
    return []


def trls(completions, solution, **kwargs):
    return []


def too_few(prompts, completions):
    return []


def test_a_reward_that_cannot_be_asked_is_refused():
    example = Example("q", "4", columns=dict(nums=[1]))
    with pytest.raises(InputError, match=r"asks for 'numbers', which 1 of 2 .* default\): did you mean 'nums'\?"):
        scores(as_reward(asks_in_vain), ["q"] * 2, ["a"] * 2, [example, Example("q", "4", columns=dict(numbers=3))])
    for function in (trls, too_few):
        with pytest.raises(
            InputError, match=r"let it take \(prompts, completions, examples\) in this order, and then by"
        ):
            as_reward(function).check()
    as_reward(told_of).check()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", r"names 'os:system', which is no part of this project: pass the file .* with --modules"),
        ("another.py:f", r"names 'user_another:f', which is no part of this project: pass the file"),
        ("llm_jax.core.user_modules:load_module", "which is no function of an experiment or a file of yours"),
        ("brevity", "a reward names 'brevity', which is no part of this project"),
    ],
)
def test_only_what_the_user_ran_is_called(name, message):
    with pytest.raises(InputError, match=message):
        Function(name).check()


def test_a_name_that_its_file_lacks_is_told(file):
    load_module(file)
    with pytest.raises(InputError, match="user_brief_replies:brvity', which is no function"):
        Function(f"{file}:brvity").check()


def test_a_function_without_a_name_of_its_own_is_refused():
    def inner(prompts, completions, examples):
        return []

    for function in (lambda prompts, completions, examples: [], inner):
        with pytest.raises(InputError, match="has no name that a manifest could keep: write it with def, at the top"):
            as_reward(function)


def given_back(value):
    """A reward of the user's own that gives this."""

    @dataclasses.dataclass(frozen=True)
    class Mine(Reward):
        def __call__(self, prompts, completions, examples):
            return value

    return Mine()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (["1.0", "2.0"], r"\['1.0', '2.0'\] \(list\)"),
        ({"a": 1.0, "b": 2.0}, r"\{'a': 1.0, 'b': 2.0\} \(dict\)"),
        ([1.0, None], r"\[1.0, None\] \(list\)"),
        ([[1.0], [2.0]], r"\[\[1.0\], \[2.0\]\] \(list\)"),
        ([[1.0], [2.0, 3.0]], r".* \(list\)"),
        ([1.0], r"\[1.0\] \(list\)"),
        ([1.0, float("nan")], r"\[1.0, nan\] \(list\)"),
        (1.0, r"1.0 \(float\)"),
        (None, r"None \(NoneType\)"),
        ((x for x in (1.0, 2.0)), r"<generator .* \(generator\)"),
        ([1j, 2j], r".* \(list\)"),
    ],
)
def test_what_is_no_score_for_each_is_named(value, shown):
    wanted = "it must return a list or an array of 2 finite numbers"
    with pytest.raises(InputError, match=f"the reward Mine returned {shown}: {wanted}"):
        scores(given_back(value), ["p", "q"], ["a", "b"], [])


@pytest.mark.parametrize(
    "value", [[1, True], (0.5, np.float32(2)), np.array([1, 2]), jnp.ones(2, jnp.bfloat16), [np.array(1.0), 2]]
)
def test_numbers_of_every_kind_are_scores(value):
    found = scores(given_back(value), ["p", "q"], ["a", "b"], [])
    assert found.dtype == np.float64 and found.tolist() == [float(v) for v in value]


def test_a_reward_may_spoil_its_lists_and_nobody_elses():
    class Spoils(Reward):
        def __call__(self, prompts: Any, completions: Any, examples: Any):
            prompts.clear()
            examples.clear()
            completions[:] = [c.upper() for c in completions]
            return [len(c) for c in completions]

    prompts, completions, examples = ["p", "q"], ["a", "bc"], [Example("p", "a"), Example("q", "b")]
    assert scores(Spoils(), prompts, completions, examples).tolist() == [1, 2]
    assert (prompts, completions) == (["p", "q"], ["a", "bc"]) and len(examples) == 2


class Called:
    def __call__(self, prompts, completions, examples):
        return [1.0] * len(completions)


@pytest.mark.parametrize("given", [Called(), Called, functools.partial(given_back), Called().__call__, len, "brevity"])
def test_what_a_manifest_cannot_keep_is_no_reward(given):
    """And the message's advice is right."""
    with pytest.raises(InputError, match=r"is neither\. Make its class one: a frozen dataclass that extends"):
        as_reward(given)
    own = dataclasses.dataclass(frozen=True)(type("Own", (Called, Reward), {}))()
    assert as_reward(own) is own and scores(own, ["p"], ["a"], []).tolist() == [1.0]
