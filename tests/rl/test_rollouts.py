"""Completions as data: what was drawn, what is remembered of it, and a state that goes on in the middle."""

from __future__ import annotations

import collections
import dataclasses
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llm_jax
from llm_jax.core.errors import InputError
from llm_jax.data.documents import Conversation, Example, Preference, Rendering, Text
from llm_jax.data.examples import SourceAndTarget
from llm_jax.data.files import JsonLines
from llm_jax.data.loader import permuted
from llm_jax.data.noising import Masked
from llm_jax.data.packing import One
from llm_jax.data.presentation import AsIs
from llm_jax.data.sources import Mixture, Source
from llm_jax.data.split import ByHash
from llm_jax.engine.evaluation import evaluate, means
from llm_jax.engine.step import Program
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full
from llm_jax.layers.moe import Capacity, MoE, without_drops
from llm_jax.layers.norms import NoNorm, RMSNorm
from llm_jax.layers.positions import Rope
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.heads import Scorer
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side
from llm_jax.models.vision import Captioner, ImageEncoder, Patches
from llm_jax.objectives.policy import Dapo, DrGrpo, Grpo, Reinforce, Rloo
from llm_jax.objectives.ppo import Ppo
from llm_jax.objectives.rewards import ExactAnswer, ModelReward, Reward, completed
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout, place
from llm_jax.rl.completions import Completions, Prompt
from llm_jax.rl.rollouts import Rollouts
from llm_jax.text.chat import ChatML, ChatTemplate, Message
from llm_jax.text.recipes import Bytes


@dataclasses.dataclass(frozen=True)
class Ones(Reward):
    """How many bytes of the completion are odd."""

    def __call__(self, prompts, completions, examples):
        return np.array([sum(byte % 2 for byte in text.encode()) for text in completions], np.float64)


@dataclasses.dataclass(frozen=True)
class Short(Reward):
    def __call__(self, prompts, completions, examples):
        return np.array([-len(text) for text in completions], np.float64)


@dataclasses.dataclass(frozen=True)
class Sums(Source):
    """`count` prompts that begin with `first`."""

    first: str
    count: int
    last: str = "+"

    def documents(self):
        return (Example(f"{self.first}{i}{self.last}", "A") for i in range(self.count))


@dataclasses.dataclass(frozen=True)
class Bare(Source):
    """Prompts to which no answer is known."""

    count: int

    def documents(self):
        return (Conversation((Message("user", str(i)),)) for i in range(self.count))


@dataclasses.dataclass(frozen=True)
class Longer(Source):
    """Prompts of 1 to 30 bytes."""

    chat: bool

    def documents(self):
        texts = [f"{i % 10}" * (1 + i // 10) for i in range(300)]
        return (Conversation((Message("user", text),)) if self.chat else Example(text, "A") for text in texts)


def needs_columns(prompts, completions, examples, nums):
    return nums


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [dict(prompt=f"{i}+", answer="A") for i in range(40)] + [dict(prompt="far too long for a row", answer="A")]
    file.write_text("\n".join(map(json.dumps, lines)))
    return JsonLines(str(file))


@pytest.fixture(scope="module")
def experiment(tiny, prompts):
    data = Rollouts(
        prompts, length=12, batch=8, group=4, batches=2, updates=2, max_tokens=5, rewards=(Ones(), Short()),
        weights=(1.0, 0.5), temperature=1.5,
    )  # fmt: skip
    return dataclasses.replace(
        tiny, data=data, objective=Grpo(), optimizer=AdamW(learning_rate=0.05, schedule=Constant())
    )  # fmt: skip


@pytest.fixture(scope="module")
def program(experiment, tokenizer):
    return Program(experiment, experiment.layout.mesh(), tokenizer)


@pytest.fixture(scope="module")
def state(program):
    return program.begin()


def made(program, tokenizer, seed=0):
    return program.experiment.data.train(tokenizer, seed=seed, program=program)


@pytest.fixture(scope="module")
def rollout(program, state, tokenizer):
    """The batches of one rollout, all updates."""
    batches = made(program, tokenizer)
    return [batches.next(state) for _ in range(4)]


def test_rows_hold_what_was_drawn(rollout, tokenizer):
    sizes = {name: array.shape[1:] for name, array in rollout[0].items()}
    assert all(shape == ((12,) if name.endswith("_BT") else ()) for name, shape in sizes.items())
    for batch in rollout:
        weight, targets = batch["weight_BT"], batch["targets_BT"]
        for row in range(8):
            drawn = targets[row, weight[row] > 0]
            assert 1 <= len(drawn) <= 5 and not set(drawn.tolist()) & tokenizer.unsaid
            assert (drawn[-1] in tokenizer.ends) == bool(batch["ended_B"][row])
            assert len(drawn) == 5 or batch["ended_B"][row]
            assert not set(drawn[:-1].tolist()) & tokenizer.ends
            real = batch["segment_BT"][row] == 0
            assert tokenizer.decode(batch["tokens_BT"][row, real & (weight[row] == 0)]).rstrip("+").isdigit()
            assert np.array_equal(batch["tokens_BT"][row, 1 : real.sum()], targets[row, : real.sum() - 1])
            text = tokenizer.decode(drawn)
            each = Ones()([""], [text], []), Short()([""], [text], [])
            assert batch["reward_Ones_0_B"][row] == each[0] and batch["reward_Short_1_B"][row] == each[1]
            assert batch["reward_B"][row] == each[0] + 0.5 * each[1]


def test_the_critic_reads_all_of_a_completion_that_was_cut_off(experiment, tokenizer):
    """`bootstrap` puts the last token among the inputs, in rows that are full too; all else is as without it."""
    model = ActorCritic(experiment.model, Scorer(experiment.model))
    rows = []
    for objective in (Ppo(bootstrap=True), Ppo()):
        changed = dataclasses.replace(experiment, model=model, objective=objective)
        program = Program(changed, changed.layout.mesh(), tokenizer)
        state = program.begin()
        rows.append(made(program, tokenizer).next(state))
    whole, plain = rows
    cut_B = whole["ended_B"] == 0
    assert cut_B.sum() > 0 and (whole["segment_BT"].sum(1) == plain["segment_BT"].sum(1) + 1).all()
    for name in ("targets_BT", "weight_BT", "bytes_BT", "reward_B", "old_BT", "reference_BT"):
        np.testing.assert_allclose(whole[name], plain[name], atol=1e-6, err_msg=name)
    params: Any = jax.device_get(state.params)["critic"]
    for row in range(len(cut_B)):
        last = np.flatnonzero(whole["weight_BT"][row])[-1] + 1
        read = whole["tokens_BT"][row : row + 1, : last + 1]
        assert read[0, -1] == whole["targets_BT"][row, last - 1]
        score_BT: Any = model.critic.apply({"params": params}, jnp.asarray(read))
        np.testing.assert_allclose(whole["value_BT"][row, last], score_BT[0, -1], atol=1e-5)
    kept = [b["advantage_BT"][~cut_B] for b in rows]
    assert not np.allclose(whole["advantage_BT"][cut_B], plain["advantage_BT"][cut_B]) and len(kept[0])
    said = dataclasses.replace(experiment.data, unended=-1.0)
    with pytest.raises(InputError, match=r"data.unended=-1 says .* objective.bootstrap=False"):
        Ppo(bootstrap=True).prepare(said, tokenizer)
    for data, objective in ((dataclasses.replace(said, unended=None), Ppo(bootstrap=True)), (said, Ppo())):
        objective.prepare(data, tokenizer)


def test_a_completion_without_an_end_is_worth_what_is_said(experiment, tokenizer):
    data = dataclasses.replace(experiment.data, unended=-7.0)
    texts, ended = ["a", "bc", "aa"], np.array([True, False, True])
    completions = Completions(data.prompts("train", tokenizer)[0][0][:3], [[1], [2, 3], [1, 1]], texts, ended)
    found = data.judged(completions, data.rewards)
    np.testing.assert_array_equal(found["reward_B"], [1 - 0.5, -7, 2 - 1])
    np.testing.assert_array_equal(found["reward_Ones_0_B"], [1, 1, 2])
    assert completions.truncated() == pytest.approx(1 / 3)


def test_a_rollout_is_trained_on_so_many_times_each_in_another_order(rollout):
    rows = [[row.tobytes() for row in batch["targets_BT"]] for batch in rollout]
    first, second = rows[0] + rows[1], rows[2] + rows[3]
    assert sorted(first) == sorted(second) and first != second
    for batch in (rollout[0], rollout[1]):
        assert np.isfinite(batch["advantage_BT"]).all() and (batch["reward_spread_B"] >= 0).all()
        np.testing.assert_array_equal(batch["reward_zero_std_B"], batch["reward_spread_B"] < 1e-6)
    both = {name: np.concatenate([rollout[i][name] for i in (0, 1)]) for name in rollout[0]}
    opening_BT = (both["segment_BT"] == 0) & (both["weight_BT"] == 0)
    prompt_B = [tuple(tokens[opening]) for tokens, opening in zip(both["tokens_BT"], opening_BT, strict=True)]
    advantage_B = (both["advantage_BT"] * both["weight_BT"]).sum(1) / both["weight_BT"].sum(1)
    for prompt in set(prompt_B):
        group = [i for i, other in enumerate(prompt_B) if other == prompt]
        assert len(group) == 4
        reward = both["reward_B"][group].astype(np.float64)
        wanted = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-4)
        np.testing.assert_allclose(advantage_B[group], wanted, rtol=1e-5, atol=1e-6)


def test_the_state_holds_a_rollout_whose_weights_are_gone(program, state, rollout, tokenizer):
    first = made(program, tokenizer)
    for number in range(4):
        saved = json.loads(json.dumps(first.save()))
        assert (saved["rollout"] is None) == (number == 0)
        again = made(program, tokenizer)
        again.restore(saved)
        assert again.save() == saved
        gone = state if number == 0 else None  # within a rollout no state is asked for
        for batch in (first.next(gone), again.next(gone)):
            for name, array in rollout[number].items():
                np.testing.assert_array_equal(batch[name], array, err_msg=name)
    assert first.save()["rollout"] is None
    other = made(program, tokenizer).next(state)
    assert not np.array_equal(first.next(state)["targets_BT"], other["targets_BT"]), "the next rollout is another one"
    with pytest.raises(InputError, match="is of other rollouts"):
        made(program, tokenizer, seed=1).restore(first.save())


def asked(tokenizer, batch):
    """The prompt of each row."""
    before_BT = (batch["segment_BT"] == 0) & (batch["weight_BT"].cumsum(1) == 0)
    tokens = zip(batch["tokens_BT"], before_BT, batch["targets_BT"], strict=True)
    return [tokenizer.decode(np.append(row[:1], after[before])) for row, before, after in tokens]


def test_a_source_alone_is_drawn_from_as_ever(experiment, rollout, tokenizer):
    """What runs before there were mixtures have drawn, they draw when they go on."""
    (fitting,), _ = experiment.data.prompts("train", tokenizer)
    wanted = [fitting[i].text for i in permuted(np.arange(4), len(fitting), (0, 0))]
    assert sorted(asked(tokenizer, rollout[0]) + asked(tokenizer, rollout[1])) == sorted(4 * wanted)


def test_prompts_of_a_mixture_are_drawn_by_its_weights(experiment, program, state, tokenizer):
    """Not by how many there are of each; a state of other weights is of other rollouts."""

    def mixing(*weights):
        source = Mixture((Sums("a", 60), Sums("b", 20)), weights)
        data = dataclasses.replace(experiment.data, source=source, group=2, batches=1, updates=1)
        return data, data.train(tokenizer, seed=3, program=program)

    data, batches = mixing(1.0, 3.0)
    made = [asked(tokenizer, batches.next(state)) for _ in range(8)]
    counted = collections.Counter(text for batch in made for text in batch)
    each = {name: sum(n for text, n in counted.items() if text[0] == name) for name in "ab"}
    assert each == dict(a=16, b=48) and max(counted.values()) == 4, "24 groups of b are of at most 20 prompts"
    assert all(sum(text[0] == "b" for text in batch) == 6 for batch in made)

    _, again = mixing(1.0, 3.0)
    for _ in range(3):
        again.next(state)
    saved = json.loads(json.dumps(again.save()))
    _, resumed = mixing(1.0, 3.0)
    resumed.restore(saved)
    assert [asked(tokenizer, resumed.next(state)) for _ in range(2)] == made[3:5]
    with pytest.raises(InputError, match="is of other rollouts"):
        mixing(1.0, 1.0)[1].restore(saved)

    held_out = dataclasses.replace(data, split=ByHash(0.5), evaluation_batches=1).evaluation(tokenizer)
    assert {prompt.text[0] for prompt in held_out.prompts} == {"a", "b"}


@pytest.mark.parametrize("objective", [Grpo(), DrGrpo(), Dapo()], ids=["Grpo", "DrGrpo", "Dapo"])
def test_the_first_step_is_on_the_policy_and_the_same_however_it_is_divided(
    experiment, state, rollout, tokenizer, objective
):
    """Microbatches and devices change nothing; at first the ratio is 1, nothing diverges and GRPO's loss is 0."""
    after = []
    exact = AdamW(learning_rate=0.05, schedule=Constant(), epsilon=1e-6)  # else rounding is as large as any gradient
    for layout, microbatches in ((1, 1), (4, 2)):
        changes = dict(objective=objective, layout=Layout(layout), microbatches=microbatches, optimizer=exact)
        program = Program(dataclasses.replace(experiment, **changes), Layout(layout).mesh(), tokenizer)
        with jax.set_mesh(program.mesh):
            done, metrics = program.update(program.begin(), place(rollout[0], program.mesh))
        after.append(jax.device_get((done.params, done.sums, metrics)))
    (params, sums, metrics), other = after
    assert abs(sums["kl"]) < 1e-9 and sums["clip_fraction"] == 0 and metrics["gradient_norm"] > 1e-3
    assert sums["reward_Ones_0"] == rollout[0]["reward_Ones_0_B"].sum()
    logged = means(sums, likelihood=False)
    assert logged["sampling_logp_difference_max"] == pytest.approx(rollout[0]["sampling_logp_difference_max_B"][0])
    assert logged["prompts_left_out"] == pytest.approx(rollout[0]["prompts_left_out_B"][0])
    assert logged["sampling_logp_difference"] < logged["sampling_logp_difference_max"] < 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), sums, other[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), params, other[0])
    if type(objective) is Grpo:  # over whole groups
        first = [{name: batch[name] for name in ("advantage_BT", "weight_BT")} for batch in rollout[:2]]
        of_rows = np.concatenate([(b["advantage_BT"].sum(1) / b["weight_BT"].sum(1)) for b in first])
        assert abs(of_rows.mean()) < 1e-6


def test_what_is_remembered_is_the_distribution_that_was_drawn_from(program, state, rollout, tokenizer):
    batch = rollout[0]
    scores, _ = program.experiment.model.apply({"params": state.params}, batch["tokens_BT"])
    scores = np.asarray(scores, np.float64) / 1.5
    scores[..., list(tokenizer.unsaid)] = scores[..., tokenizer.vocabulary :] = -np.inf
    log = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log, batch["targets_BT"][..., None], -1)[..., 0]
    drawn = batch["weight_BT"] > 0
    np.testing.assert_allclose(batch["old_BT"][drawn], chosen[drawn], atol=1e-5)
    assert not batch["old_BT"][~drawn].any()
    np.testing.assert_array_equal(batch["old_BT"], batch["reference_BT"])


@pytest.mark.parametrize("dispatch", [Capacity(2.0), Capacity(1.0)], ids=str)
def test_every_rollout_says_how_far_sampler_and_training_are_apart(experiment, state, tokenizer, dispatch):
    """Rounding, for a policy that is the one that wrote; experts without room make another one, which is refused."""
    block = Block(Attention(2, 1, 8), MoE(16, experts=4, top_k=2, dispatch=dispatch))
    model = experiment.model.clone(stack=Stack((block,), 1))
    drops = dispatch == Capacity(1.0)
    trained = dataclasses.replace(experiment, model=model)
    program = Program(trained, trained.layout.mesh(), tokenizer)
    begun = program.begin()
    batch = made(program, tokenizer).next(begun)
    mean, largest = (batch[f"sampling_logp_difference{name}_B"] for name in ("", "_max"))
    assert (mean == mean[0]).all() and (largest == largest[0]).all() and 0 <= mean[0] < largest[0]
    assert (largest[0] > 1e-2) if drops else (largest[0] < 1e-5)
    if drops:
        message = r"model.stack.pattern.0.ffn.dispatch=Capacity.* set it to Dropless\(\), or to Capacity\(factor=2\)"
        with pytest.raises(InputError, match=message):
            Grpo().check(model, [])
        critic: Any = ActorCritic(model, Scorer(model))
        with pytest.raises(InputError, match=r"model.actor.stack.pattern.0.ffn.dispatch=Capacity"):
            Ppo().check(critic, [])
        Ppo().check(ActorCritic(without_drops(model), Scorer(model)), [])
    else:
        Grpo().check(model, [])
        assert without_drops(model) == model


def test_held_out_prompts_are_answered_and_shown(program, state, tokenizer):
    held_out = program.experiment.data.evaluation(tokenizer)
    found = evaluate(program, state.params, held_out, state.frozen)
    assert found["loss"] == -found["reward"] and {"entropy", "length", "truncated"} <= found.keys()
    assert not {"kl", "kl_per_reply"} & found.keys(), "greedy answers estimate no divergence"
    assert len(held_out.samples) == min(3, len(held_out.prompts))
    texts = [
        Ones()([""], [s["completion"]], [])[0] + 0.5 * Short()([""], [s["completion"]], [])[0] for s in held_out.samples
    ]
    assert texts == [s["reward"] for s in held_out.samples]
    assert found == evaluate(program, state.params, held_out, state.frozen)


def test_prompts_are_what_comes_before_the_answer(tokenizer):
    rendering = Rendering()
    example = Prompt.of(Example("1+1=", "2"), tokenizer, rendering)
    assert list(example.ids) == [tokenizer.special["bos"], *tokenizer.encode("1+1=")] and example.text == "1+1="
    said = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
    turn = Prompt.of(Conversation(said), tokenizer, rendering)
    assert list(turn.ids) == rendering.settled.template.render(tokenizer, said[:3], reply=True)[0] and turn.text == "c"
    assert completed(turn.document, "e") == Conversation((*said[:3], Message("assistant", "e")))
    tools = ('{"name": "sum"}',)
    armed = Prompt.of(Conversation(said, tools), tokenizer, rendering)
    assert (
        list(armed.ids)
        == rendering.settled.template.render(tokenizer, said[:3], reply=True, tools=tools)[0]
        != list(turn.ids)
    )
    assert completed(armed.document, "e") == Conversation((*said[:3], Message("assistant", "e")), tools)
    pair = Prompt.of(Preference(said[:1], "e", "f"), tokenizer, rendering)
    assert list(pair.ids) == rendering.settled.template.render(tokenizer, said[:1], reply=True)[0]
    assert completed(pair.document, "g") == Conversation((said[0], Message("assistant", "g")))
    with pytest.raises(InputError, match="a Text has none"):
        Prompt.of(Text("a"), tokenizer, rendering)
    for open_ended in (said[:1], said[:3]):
        asked = Prompt.of(Conversation(open_ended), tokenizer, rendering)
        assert list(asked.ids) == rendering.settled.template.render(tokenizer, open_ended, reply=True)[0]
        assert completed(asked.document, "e") == Conversation((*open_ended, Message("assistant", "e")))
        assert [p.ids for p in Prompt.among([Conversation(open_ended)], tokenizer, rendering, 99)[0]] == [asked.ids]
    with pytest.raises(InputError, match="nothing precedes a reply"):
        Prompt.of(Conversation(said[1:2]), tokenizer, rendering)
    assert Prompt.among([Conversation(said[1:2])], tokenizer, rendering, 99) == ([], 0)


def test_a_reward_model_reads_the_whole_text(tiny, tokenizer):
    model: Any = Scorer(tiny.model)
    params = jax.jit(model.begin)(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf * 3, nn.meta.unbox(params))
    reward = ModelReward(Pretrained("runs/judge", model)).ready(
        tokenizer, Rendering(), {"pretrained": {"runs/judge": params}}
    )
    examples = [Example("1+1=", "2"), Example("20+2=", "22")]
    found = reward(["1+1=", "20+2="], ["33", "4"], examples)
    for score, example, text in zip(found, examples, ("33", "4"), strict=True):
        ids = np.array([[tokenizer.special["bos"], *tokenizer.encode(example.prompt + text), tokenizer.special["eos"]]])
        wanted = model.apply({"params": params}, ids.astype(np.int32), method="reward")
        np.testing.assert_allclose(score, float(wanted[0]), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="the reward model reads 16"):
        reward([""], ["a" * 20], examples[:1])
    with pytest.raises(InputError, match=r"the model of runs/judge must be .*Scorer"):
        ModelReward(Pretrained("runs/judge", tiny.model)).ready(tokenizer, Rendering(), {})


@pytest.fixture(scope="module")
def judge(tiny):
    """A reward model that reads 16 tokens, and what a training asks of it."""
    model: Any = Scorer(tiny.model)
    params = jax.tree.map(lambda leaf: leaf * 3, nn.meta.unbox(jax.jit(model.begin)(jax.random.key(0))))
    scored = jax.jit(lambda ids_BT: model.apply({"params": params}, ids_BT, method="reward")[0])
    return ModelReward(Pretrained("runs/judge", model)), {"pretrained": {"runs/judge": params}}, scored


def test_a_completion_that_was_cut_off_is_read_without_an_end(judge, tokenizer, caplog):
    """And so that it has room: text that was drawn as fewer tokens than it is read as is read from its beginning."""
    reward, frozen, scored = judge
    document = Example("1+1=", "2")
    prompt = Prompt.of(document, tokenizer, Rendering())
    assert len(prompt.ids) == 5
    said = Conversation((Message("user", "1+1="), Message("assistant", "2")))
    asked = Prompt.of(said, tokenizer, Rendering())
    stray = tokenizer.encode("\ufffd")  # what a byte that is no character becomes: three tokens
    assert len(stray) == 3
    texts = ["33", "33", "\ufffd" * 4 + "4", "a" * 11, "5", "5"]
    prompts = [prompt] * 4 + [asked] * 2
    ended = np.array([True, False, True, False, True, False])
    lengths = [3, 2, 6, 11, 2, 1]
    data = Rollouts(Sums("9", 9), length=16, max_tokens=11, rewards=(reward,))
    made = Completions(prompts, [[1] * size for size in lengths], texts, ended)
    found = data.judged(made, [reward.ready(tokenizer, Rendering(), frozen)])["reward_B"]
    end = tokenizer.special["eos"]
    read = [
        [*prompt.ids, *tokenizer.encode("33"), end],
        [*prompt.ids, *tokenizer.encode("33")],
        [*prompt.ids, *stray * 4][:16],
        [*prompt.ids, *tokenizer.encode("a" * 11)],
        [*asked.ids, *tokenizer.encode("5"), tokenizer.special["end_of_turn"]],
        [*asked.ids, *tokenizer.encode("5")],
    ]
    for score, ids in zip(found, read, strict=True):
        np.testing.assert_allclose(score, float(scored(np.array([ids], np.int32))), rtol=1e-4, atol=1e-6)
    assert "1 of 6 completions are more tokens when their text is read again than when they were drawn" in caplog.text
    with pytest.raises(InputError, match="has 17 tokens with its prompt, the reward model reads 16"):
        drawn = Completions([prompt], [[1] * 12], ["a" * 12], np.array([False]))
        data.judged(drawn, [reward.ready(tokenizer, Rendering(), frozen)])


@pytest.mark.parametrize(
    ("template", "chat", "reads", "closing"),
    [(ChatTemplate(), False, 16, 0), (ChatTemplate(), True, 16, 0), (ChatML(), True, 32, 1)],
)
def test_a_reward_model_without_room_is_refused_before_the_first_step(tiny, template, chat, reads, closing):
    """A context that equals data.length is enough, but for what a template closes a turn with; the advice works."""
    reward, most = ModelReward(Pretrained("runs/judge", Scorer(tiny.model.clone(context=reads)))), reads - closing
    data = Rollouts(
        Longer(chat), length=64, max_tokens=2, rewards=(reward,), rendering=Rendering(template=template), batch=4,
        group=2, split=ByHash(0.5),
    )  # fmt: skip
    tokenizer = data.prepare(Bytes())
    message = (
        rf"reward model of runs/judge reads {reads} tokens, .*: set data.length={most} or less, or lower data.max_tok"
    )
    for split in ("train", "validation"):
        with pytest.raises(InputError, match=message):
            data.check_room(data.prompts(split, tokenizer)[0], tokenizer)
    with pytest.raises(InputError, match=message):
        data.evaluation(tokenizer)
    advised = dataclasses.replace(data, length=most)
    advised.check_room(advised.prompts("train", tokenizer)[0], tokenizer)
    assert advised.evaluation(tokenizer).prompts
    with pytest.raises(InputError, match=message):
        (more := dataclasses.replace(data, length=most + 1)).check_room(more.prompts("train", tokenizer)[0], tokenizer)


def test_prompts_that_are_left_out_are_counted(tokenizer, caplog, tmp_path):
    """The others are trained on, and where all have room nothing is said."""
    (file := tmp_path / "sums.jsonl").write_text(
        "\n".join(json.dumps(dict(prompt="1" * size, answer="2")) for size in (2, 3, 4, 9, 12))
    )
    data = Rollouts(JsonLines(str(file)), length=12, max_tokens=4, split=ByHash(1e-9), batch=4, group=2)
    with caplog.at_level("WARNING"):
        (found,), left_out = data.prompts("train", tokenizer)
    assert left_out == pytest.approx(2 / 5)
    sizes = [len(prompt.ids) for prompt in found]
    assert sizes == [size for size in (3, 4, 5, 10, 13) if size <= 8]
    assert "2 of 5 train prompts of JsonLines" in caplog.text and "the longest has 13 tokens" in caplog.text
    caplog.clear()
    _, none = dataclasses.replace(data, length=20).prompts("train", tokenizer)
    assert none == 0 and not caplog.text


def test_what_cannot_be_rolled_out_is_refused(experiment, tiny, program, tokenizer):
    data = experiment.data
    for changes, message in (
        (dict(group=3), "no whole number of groups of data.group=3"),
        (dict(weights=(1.0,)), "2 data.rewards, 1 data.weights: give one each"),
        (dict(max_tokens=10), "leaves room for data.max_tokens=10 in data.length=12"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(data, **changes).train(tokenizer, seed=0, program=program)
    for rewards, message in (
        ((needs_columns,), r"needs_columns asks for 'nums', which \d+ of \d+ prompts have not .*: choose from answer"),
        ((ExactAnswer(),), r"ExactAnswer needs documents to which one answer is known: .*: 20 of \d+ have none"),
    ):
        mixed = Mixture((data.source, Bare(20)), (1.0, 1.0))
        unknown = dataclasses.replace(data, rewards=rewards, weights=(), source=mixed, split=ByHash(1e-9))
        with pytest.raises(InputError, match=message):
            unknown.train(tokenizer, seed=0, program=program)
    for name, value in dict(packing=One(), presentation=Masked(), workers=2).items():
        with pytest.raises(InputError, match=f"leave data.{name} at"):
            dataclasses.replace(data, **{name: value}).train(tokenizer, seed=0, program=program)
        with pytest.raises(InputError, match=f"leave data.{name} at"):
            dataclasses.replace(data, **{name: value}).evaluation(tokenizer)
    long = dataclasses.replace(data, source=Mixture((data.source, Sums("9", 30, "+" * 9)), (1, 1)))
    with pytest.raises(InputError, match=r"of \d+ train prompts of Sums.* none leaves room"):
        long.train(tokenizer, seed=0, program=program)
    assert len(long.prompts("validation", tokenizer)[0][1]) == 0 < len(long.evaluation(tokenizer).prompts)
    alone = dataclasses.replace(data, group=1, batch=1, batches=1)
    for objective, message in (
        (Grpo(), "Grpo compares completions of one prompt: data.group must be 2 or more"),
        (Rloo(), "Rloo compares completions of one prompt: data.group must be 2 or more"),
        (Reinforce(), "data.batch x data.batches must be 2 or more"),
    ):
        with pytest.raises(InputError, match=message):  # before anything is written
            Program(dataclasses.replace(experiment, data=alone, objective=objective), program.mesh, tokenizer).begin()
    with pytest.raises(InputError, match="in one process, not 2"):
        data.train(tokenizer, seed=0, processes=2, program=program)
    with pytest.raises(InputError, match=r"Grpo learns from completions: set data=Rollouts"):
        Grpo().prepare(tiny.data, tokenizer)
    fitting = [prompt for split in ("train", "validation") for prompt in data.prompts(split, tokenizer)[0][0]]
    assert all(len(prompt.ids) <= 7 for prompt in fitting)


@pytest.mark.parametrize("critic", [False, True])
def test_the_advice_for_models_that_cannot_be_rolled_out_works(experiment, tokenizer, critic, tmp_path):
    """One refusal, whatever the presentation of the data is; what it says to set is trained on."""
    decoder: Any = experiment.model
    writes = Stack((Block(Attention(2), FeedForward(8), cross=CrossAttention(2)),), 1)
    reads = Stack((Block(Attention(2, mask=Full()), FeedForward(8)),), 1)
    reader, writer = (Side(stack, Rope(), RMSNorm(), NoNorm()) for stack in (reads, writes))
    translator = EncoderDecoder(Embed(8, decoder.words()), reader, writer, start=1)
    objective: Any = Ppo() if critic else Grpo()
    path = "model.actor" if critic else "model"

    def run(actor: Any, presentation: Any = AsIs()) -> Experiment:
        model = ActorCritic(actor, Scorer(decoder)) if critic else actor
        data = dataclasses.replace(experiment.data, presentation=presentation)
        return dataclasses.replace(experiment, model=model, objective=objective, data=data, steps=1)

    for presentation in (AsIs(), SourceAndTarget()):
        with pytest.raises(InputError, match=f"{path} is an EncoderDecoder, which .*: set {path} to a Decoder"):
            llm_jax.train(run(translator, presentation), str(tmp_path / "refused"))
    captioner = Captioner(ImageEncoder(Patches(4, (8, 8), 4), reads), decoder)
    with pytest.raises(InputError, match=rf"{path} is a Captioner, .* image_BYXA .*: set {path} to a Decoder"):
        objective.check(run(captioner).model, ())
    objective.check(run(decoder).model, ())
    if not critic:  # that PPO trains a decoder is tested elsewhere
        llm_jax.train(run(decoder), str(tmp_path / "run"))
