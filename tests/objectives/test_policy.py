"""Policy gradients: what trl computes, or where it has dropped the algorithm, the papers' formulas in PyTorch."""

from __future__ import annotations

import functools
import os
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from llm_jax.core.errors import InputError
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Scorer
from llm_jax.models.model import Generator
from llm_jax.models.stack import Stack
from llm_jax.objectives import policy, ppo
from llm_jax.objectives.divergence import KL_ESTIMATORS, AdaptiveKl, ExactKl, FixedKl
from llm_jax.objectives.policy import Dapo, DrGrpo, Grpo, Reinforce, Rloo, Rollout
from llm_jax.objectives.ppo import Ppo, advantages

# These programs run once: compiling them is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

EVERY = [cls() for cls in (policy.OBJECTIVES | ppo.OBJECTIVES).values()]
NAMES = [type(objective).__name__ for objective in EVERY]
B, T, V, GROUP, MOST = 6, 9, 11, 3, 5
CLOSE: Any = dict(rtol=1e-5, atol=1e-6)


class Given(Generator):
    """Its scores are its parameters."""

    @nn.compact
    def predict(self, batch, dropout_key):
        return self.param("score_BTV", nn.initializers.zeros, (B, T, V))


class GivenPair(ActorCritic):
    """And so are its values."""

    @nn.compact
    def predict(self, batch, dropout_key):
        return self.param("score_BTV", nn.initializers.zeros, (B, T, V))

    @nn.compact
    def values(self, batch):
        return self.param("value_BT", nn.initializers.zeros, (B, T))


def decoder() -> Decoder:
    return Decoder(Embed(8, V), Stack((Block(Attention(2, head=4), FeedForward(8)),), 1), context=T + 1)


PAIR = GivenPair(decoder(), Scorer(decoder()))
FROZEN: Any = dict(
    allowed_V=np.arange(V) != 3, temperature=np.float32(0.7), max_tokens=np.float32(MOST), reference={}
)  # fmt: skip


def logps(score_BTV: torch.Tensor) -> torch.Tensor:
    """Of all tokens, as they were drawn."""
    score_BTV = score_BTV / 0.7
    score_BTV[..., 3] = -torch.inf
    return score_BTV.log_softmax(-1)


@pytest.fixture(scope="module")
def case():
    """Scores and values, and a batch of which the first targets are prompts and the last ones padding."""
    draw = np.random.default_rng(0)
    size_B = np.array([5, 1, 3, 4, 5, 2])
    place = np.arange(T)[None] - draw.integers(1, 4, (B, 1))
    weight = ((place >= 0) & (place < size_B[:, None])).astype(np.float32)
    targets = draw.choice([v for v in range(V) if v != 3], (B, T)).astype(np.int32)
    score = draw.normal(size=(B, T, V)).astype(np.float32)
    chosen = np.take_along_axis(logps(torch.tensor(score)).numpy(), targets[..., None], -1)[..., 0]
    reward = draw.integers(0, 3, B).astype(np.float64)
    batch = dict(
        tokens_BT=targets, targets_BT=targets, weight_BT=weight, segment_BT=np.zeros((B, T), np.int32),
        position_BT=np.tile(np.arange(T, dtype=np.int32), (B, 1)), bytes_BT=targets,
        old_BT=((chosen + draw.normal(size=(B, T)) * 0.3) * weight).astype(np.float32),
        reference_BT=((chosen + draw.normal(size=(B, T)) * 0.3) * weight).astype(np.float32),
        value_BT=(draw.normal(size=(B, T)) * weight).astype(np.float32),
        reward_B=reward.astype(np.float32), reward_spread_B=np.ones(B, np.float32),
        ended_B=np.array([1, 1, 0, 1, 1, 1], np.float32), kl_coefficient_B=np.ones(B, np.float32),
    )  # fmt: skip
    params = dict(score_BTV=score, value_BT=draw.normal(size=(B, T)).astype(np.float32))
    return params, batch, chosen


def rollout(batch) -> Rollout:
    names = ("reward_B", "weight_BT", "old_BT", "reference_BT", "value_BT")
    return Rollout(**{name: batch[name].astype(np.float64) for name in names}, group=GROUP)


def credited(objective, batch, coefficient=0.0):
    credit = objective.credit(rollout(batch), coefficient)
    credit_BT = dict(advantage_BT=credit.advantage_BT, return_BT=credit.return_BT)
    return batch | {name: array.astype(np.float32) for name, array in credit_BT.items()}


def ours(objective, params, batch):
    """The mean loss, its gradients, and all sums."""
    model = PAIR if isinstance(objective, Ppo) else Given()

    @jit
    def value(params):
        def loss(params):
            sums = objective(model, params, FROZEN, batch, jax.random.key(0))
            return sums["loss"] / sums["weight"], sums

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, sums), gradients = value(params)
    return float(loss), gradients, sums


def theirs(params, batch) -> tuple[Any, Any, Any]:
    """PyTorch's parameters in float64, and what depends on them: the log-probabilities of the targets."""
    score = torch.tensor(params["score_BTV"], dtype=torch.float64, requires_grad=True)
    value = torch.tensor(params["value_BT"], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor(batch["targets_BT"]).long()[..., None]
    return score, value, logps(score * 1.0).gather(-1, targets)[..., 0]


def tensors(batch, *names):
    return [torch.tensor(batch[name], dtype=torch.float64) for name in names]


class Metrics(dict):
    def __missing__(self, name):
        return self.setdefault(name, []) if name not in ("train", "eval") else self.setdefault(name, Metrics())


def trainer(logp_BT, kind, low, high, beta, level="token"):
    """What of trl's trainers their loss asks for."""
    same = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, num_processes=1)
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp_BT, torch.zeros_like(logp_BT), None),
        _metrics=Metrics(), accelerator=same, aux_loss_enabled=False, top_entropy_quantile=1.0, beta=beta,
        off_policy_mask_threshold=None, importance_sampling_level=level, epsilon_low=low, epsilon_high=high,
        loss_type=kind, use_vllm=False, vllm_importance_sampling_correction=False, max_completion_length=MOST,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
    )  # fmt: skip


def trls(name: str) -> Any:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import trl

    return getattr(trl, name)


def inputs(batch, advantage_B, **more):
    whole = torch.tensor(batch["targets_BT"]).long()
    (mask,) = tensors(batch, "weight_BT")
    old, reference = tensors(batch, "old_BT", "reference_BT")
    return dict(
        prompt_ids=whole[:, :0], prompt_mask=whole[:, :0], completion_ids=whole, completion_mask=mask,
        advantages=advantage_B, old_per_token_logps=old, ref_per_token_logps=reference,
        num_items_in_batch=mask.sum(), **more,
    )  # fmt: skip


def grouped(reward_B, scale):
    """Shao et al.'s advantages, as trl computes them."""
    reward = torch.tensor(reward_B, dtype=torch.float64).view(-1, GROUP)
    advantage = reward - reward.mean(1, keepdim=True)
    return (advantage / (reward.std(1, keepdim=True) + 1e-4) if scale else advantage).view(-1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("objective", "kind", "scale"),
    [(Grpo(), "grpo", True), (DrGrpo(), "dr_grpo", False), (Dapo(), "dapo", True), (DrGrpo(kl=0.1), "dr_grpo", False),
     (Dapo(clip_low=0.05, clip_high=0.4, kl=0.3), "dapo", True)],
    ids=["grpo", "dr_grpo", "dapo", "dr_grpo with kl", "dapo with kl"],
)  # fmt: skip
def test_group_losses_are_trls(case, objective, kind, scale):
    params, batch, _ = case
    loss, gradients, sums = ours(objective, params, credited(objective, batch))
    score, _, logp_BT = theirs(params, batch)
    made = trainer(logp_BT, kind, objective.clip_low, objective.clip_high, objective.kl)
    wanted = trls("GRPOTrainer")._compute_loss(made, None, inputs(batch, grouped(batch["reward_B"], scale)))
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), **CLOSE)
    np.testing.assert_allclose(gradients["score_BTV"], score.grad, **CLOSE)
    clipped = made._metrics["train"]["clip_ratio/region_mean"][0]
    np.testing.assert_allclose(sums["clip_fraction"] / sums["clip_fraction_weight"], clipped, **CLOSE)
    assert 0 < clipped < 1
    if objective.kl:
        wanted = made._metrics["train"]["kl"][0]
        np.testing.assert_allclose(sums["kl"] / sums["kl_weight"], wanted, **CLOSE)


@pytest.mark.filterwarnings("ignore")
def test_leave_one_out_is_trls(case):
    params, batch, _ = case
    (mask, old, reference) = tensors(batch, "weight_BT", "old_BT", "reference_BT")
    scored = torch.tensor(batch["reward_B"]).double() - 0.05 * ((old - reference) * mask).sum(1)
    group = scored.view(-1, GROUP)
    advantage_B = (group - (group.sum(1, keepdim=True) - group) / (GROUP - 1)).view(-1)
    loss, gradients, sums = ours(Rloo(), params, credited(Rloo(), batch, 0.05))
    score, _, logp_BT = theirs(params, batch)
    made = trainer(logp_BT, "rloo", 0.2, 0.2, 0.05)
    wanted = trls("RLOOTrainer")._compute_loss(
        made, None, inputs(batch, advantage_B, old_logps=(old * mask).sum(1))
    )  # fmt: skip
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), **CLOSE)
    np.testing.assert_allclose(gradients["score_BTV"], score.grad, **CLOSE)
    clipped = made._metrics["train"]["clip_ratio/region_mean"][0]
    np.testing.assert_allclose(sums["clip_fraction"] / sums["clip_fraction_weight"], clipped, **CLOSE)


def test_reinforce_is_the_log_probability_times_the_advantage(case):
    """On the policy's own completions."""
    params, batch, chosen = case
    batch = batch | dict(old_BT=(chosen * batch["weight_BT"]).astype(np.float32))
    objective = Reinforce(kl=FixedKl(0.0))
    _, gradients, _ = ours(objective, params, credited(objective, batch))
    score, _, logp_BT = theirs(params, batch)
    mask, reward = tensors(batch, "weight_BT", "reward_B")
    (-(logp_BT * mask).sum(1) * (reward - reward.mean())).mean().backward()
    np.testing.assert_allclose(gradients["score_BTV"], score.grad, **CLOSE)


def estimates(reward, value, discount, trace, after=0.0):
    """Generalised advantages of one completion, by their definition: a sum over all that comes."""
    value = np.append(value, after)
    errors = reward + discount * value[1:] - value[:-1]
    decay = discount * trace
    return np.array([sum(decay ** (j - t) * errors[j] for j in range(t, len(errors))) for t in range(len(errors))])


@pytest.mark.parametrize(("discount", "trace"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.8, 0.0)])
def test_advantages_are_the_papers_sums(case, discount, trace):
    _, batch, _ = case
    draw = np.random.default_rng(1)
    weight, value = batch["weight_BT"].astype(np.float64), draw.normal(size=(B, T))
    reward = draw.normal(size=(B, T)) * weight
    found = advantages(reward, value, weight, discount, trace)
    for row in range(B):
        here = weight[row] > 0
        wanted = estimates(reward[row, here], value[row, here], discount, trace)
        np.testing.assert_allclose(found[row, here], wanted, rtol=1e-12)
        assert not found[row, ~here].any()


def test_a_completion_that_was_cut_off_is_worth_what_the_critic_expects(case):
    """With `bootstrap`; the reward of what stands there does not count. Others are as without it."""
    _, batch, _ = case
    weight = batch["weight_BT"] > 0
    value_BT = np.random.default_rng(4).normal(size=(B, T))
    names = ("reward_B", "weight_BT", "old_BT", "reference_BT", "ended_B")
    told = {name: batch[name].astype(np.float64) for name in names}
    found, plain = (
        Ppo(whiten=False, discount=0.9, bootstrap=on).credit(Rollout(**told, value_BT=value_BT, group=1), 0.3)
        for on in (True, False)
    )
    for row in range(B):
        here = weight[row]
        reward = -0.3 * (told["old_BT"] - told["reference_BT"])[row, here]
        ended = told["ended_B"][row] == 1
        reward[-1] += told["reward_B"][row] * ended
        after = 0.0 if ended else value_BT[row, np.flatnonzero(here)[-1] + 1]
        wanted = estimates(reward, value_BT[row, here], 0.9, 0.95, after)
        np.testing.assert_allclose(found.advantage_BT[row, here], wanted, rtol=1e-12)
        np.testing.assert_allclose(found.return_BT[row, here], wanted + value_BT[row, here], rtol=1e-12)
        assert not found.advantage_BT[row, ~here].any()
        assert np.array_equal(found.advantage_BT[row], plain.advantage_BT[row]) == ended
    assert not batch["ended_B"].all()


@pytest.mark.parametrize("whiten", [True, False])
def test_ppo_is_the_papers(case, whiten):
    params, batch, _ = case
    objective = Ppo(whiten=whiten)
    loss, gradients, sums = ours(objective, params, credited(objective, batch, 0.3))
    score, value, logp_BT = theirs(params, batch)
    mask, old, reference, before, reward = tensors(
        batch, "weight_BT", "old_BT", "reference_BT", "value_BT", "reward_B"
    )  # fmt: skip
    gain, returns = torch.zeros_like(mask), torch.zeros_like(mask)
    for row in range(B):
        here = mask[row] > 0
        each = -0.3 * (old - reference)[row, here]
        each[-1] += reward[row]
        made = estimates(each.numpy(), before[row, here].numpy(), 1.0, 0.95)
        gain[row, here], returns[row, here] = torch.tensor(made), torch.tensor(made) + before[row, here]
    if whiten:
        of = gain[mask > 0]
        gain = (gain - of.mean()) / of.var(unbiased=False).add(1e-8).sqrt()
    ratio = (logp_BT - old).exp()
    policy = torch.maximum(-gain * ratio, -gain * ratio.clamp(0.8, 1.2))
    near = torch.clamp(value, before - 0.2, before + 0.2)
    values = 0.5 * torch.maximum((value - returns) ** 2, (near - returns) ** 2)
    wanted = (policy[mask > 0] + 0.1 * values[mask > 0]).mean()
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), **CLOSE)
    np.testing.assert_allclose(gradients["score_BTV"], score.grad, **CLOSE)
    np.testing.assert_allclose(gradients["value_BT"], value.grad, **CLOSE)
    np.testing.assert_allclose(sums["value_loss"] / sums["weight"], values[mask > 0].mean().item(), **CLOSE)
    outside = ((ratio < 0.8) & (gain < 0)) | ((ratio > 1.2) & (gain > 0))
    np.testing.assert_allclose(sums["clip_fraction"], (outside * mask).sum(), **CLOSE)


def test_the_penalty_follows_the_divergence():
    adaptive = AdaptiveKl(0.2, target=6.0, gain=0.1)
    assert adaptive.after(0.2, 60.0) == pytest.approx(0.2 * 1.02)  # Ziegler et al. 2019, section 2.2
    assert adaptive.after(0.2, 6.6) == pytest.approx(0.2 * 1.01)
    assert adaptive.after(0.2, 0.0) == pytest.approx(0.2 * 0.98)
    assert FixedKl(0.3).after(0.3, 60.0) == 0.3
    assert Ppo(kl=adaptive).first_coefficient() == 0.2 and Grpo().first_coefficient() == 0.0


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_what_an_estimate_of_the_divergence_is_on_average(name):
    """Over all tokens that the policy may draw, by their probabilities: the value, and the gradient of it as a loss."""
    draw = np.random.default_rng(2)
    score_V, reference_V = draw.normal(size=(2, V)).astype(np.float32)
    policy_V, other_V = jax.nn.log_softmax(score_V), jax.nn.log_softmax(reference_V)

    def estimates(score_V):  # each token as if it had been drawn
        logp_V = jax.nn.log_softmax(score_V)
        whole = [jnp.broadcast_to(logs_V, (1, V, V)) for logs_V in (logp_V, other_V)]
        return KL_ESTIMATORS[name]()(logp_V[None], other_V[None], *whole)[0]

    score = torch.tensor(score_V.astype(np.float64), requires_grad=True)
    p, q = score.log_softmax(-1), torch.tensor(reference_V.astype(np.float64)).log_softmax(-1)
    forward, backward = (p.exp() * (p - q)).sum(), (q.exp() * (q - p)).sum()
    biased = (p.exp() * (p - q) ** 2 / 2).sum()
    zero = (p - p.detach()).sum() * 0
    value, gradient = dict(
        K1=(forward, zero), K2=(biased, forward), K3=(forward, backward), ExactKl=(forward, forward)
    )[name]  # fmt: skip
    of = torch.autograd.grad(gradient, score)[0]
    np.testing.assert_allclose((jnp.exp(policy_V) * estimates(score_V)).sum(), value.item(), **CLOSE)
    found = (jnp.exp(policy_V)[:, None] * jax.jacobian(estimates)(score_V)).sum(0)
    np.testing.assert_allclose(found, of, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_group_losses_with_every_estimate_of_the_divergence(case, name):
    """The difference that `kl` makes to the loss, which is also what is logged."""
    params, batch, chosen = case
    reference = np.random.default_rng(3).normal(size=(B, T, V)).astype(np.float32)
    frozen = FROZEN | dict(reference=dict(score_BTV=reference))
    estimator = KL_ESTIMATORS[name]()
    p, q = (logps(torch.tensor(x)).double() for x in (params["score_BTV"], reference))
    log_ratio = chosen - batch["reference_BT"].astype(np.float64)
    kl = dict(
        K1=log_ratio, K2=log_ratio**2 / 2, K3=np.exp(-log_ratio) + log_ratio - 1,
        ExactKl=(p.exp() * (p - q)).nan_to_num(0).sum(-1).numpy(),
    )[name]  # fmt: skip
    weight = batch["weight_BT"]
    batch = credited(Grpo(), batch)
    with_kl, without = (
        jit(lambda params, o=o: o(Given(), params, frozen, batch, jax.random.key(0)))(params)
        for o in (Grpo(kl=0.5, estimator=estimator), Grpo(kl=0.0, estimator=estimator))
    )
    wanted = 0.5 * ((kl * weight).sum(1) / weight.sum(1)).sum()
    np.testing.assert_allclose(with_kl["loss"] - without["loss"], wanted, rtol=1e-4)
    np.testing.assert_allclose(with_kl["kl"], (kl * weight).sum(), rtol=1e-4)


def test_the_exact_divergence_asks_for_the_vocabulary():
    with pytest.raises(TypeError, match="ExactKl needs logp_BTV"):
        ExactKl()(jnp.zeros((1, 1)), jnp.zeros((1, 1)))


@pytest.mark.parametrize("objective", EVERY, ids=NAMES)
def test_sums_add_up_and_say_what_a_practitioner_asks(case, objective):
    params, batch, chosen = case
    batch = credited(objective, batch)
    loss, gradients, sums = ours(objective, params, batch)
    assert np.isfinite(loss) and np.isfinite(gradients["score_BTV"]).all()
    assert not gradients["score_BTV"][batch["weight_BT"] == 0].any()
    model = PAIR if isinstance(objective, Ppo) else Given()
    parts = []
    for row in range(B):  # the scores are parameters: all rows are read, one counts
        one = batch | dict(weight_BT=batch["weight_BT"] * (np.arange(B) == row)[:, None])
        parts.append(jit(lambda one: objective(model, params, FROZEN, one, jax.random.key(0)))(one))
    for name, value in sums.items():
        np.testing.assert_allclose(sum(part[name] for part in parts), value, rtol=2e-5, atol=1e-5, err_msg=name)
    weight = batch["weight_BT"]
    assert sums["reward"] == batch["reward_B"].sum() and sums["reward_weight"] == B
    assert sums["truncated"] == 1 and sums["length"] == weight.sum() and sums["length_weight"] == B
    every = logps(torch.tensor(params["score_BTV"])).double()
    entropy = -(every.exp() * every).nan_to_num(0).sum(-1).numpy()
    np.testing.assert_allclose(sums["entropy"], (entropy * weight).sum(), rtol=1e-5)
    difference = batch["reference_BT"] - chosen
    np.testing.assert_allclose(sums["kl"], ((np.exp(difference) - difference - 1) * weight).sum(), rtol=1e-4)
    held_out = objective(model, params, FROZEN, batch, None)
    assert (
        held_out["loss"] == -sums["reward"]
        and held_out["weight"] == B
        and not {"clip_fraction", "kl"} & held_out.keys()
    )


@pytest.mark.parametrize("objective", EVERY, ids=NAMES)
def test_at_first_the_ratio_is_one_and_nothing_diverges(case, objective):
    """Of a real model, read once to remember and once to learn."""
    _, batch, _ = case
    model: Any = ActorCritic(decoder(), Scorer(decoder())) if isinstance(objective, Ppo) else decoder()
    params = nn.meta.unbox(jit(lambda key: model.init(key, jnp.zeros((1, 2), jnp.int32)))(jax.random.key(0)))["params"]
    frozen = FROZEN | dict(reference=params)
    recall = jit(functools.partial(objective.recall, model))
    batch = batch | jax.device_get(recall(params, frozen, batch))
    np.testing.assert_array_equal(batch["old_BT"], batch["reference_BT"])
    batch = credited(objective, batch, objective.first_coefficient())

    @jit
    def learn(params):
        def loss(params):
            sums = objective(model, params, frozen, batch, jax.random.key(0))
            return sums["loss"] / sums["weight"], (sums, objective.read(model, params, frozen, batch).logp_BT)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, (sums, logp_BT)), gradients = learn(params)
    np.testing.assert_allclose(np.exp(logp_BT - batch["old_BT"]), 1, atol=1e-6)
    assert abs(float(sums["kl"])) < 1e-10 and sums["clip_fraction"] == 0
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradients)))
    assert norm > 1e-2
    if not isinstance(objective, Ppo):  # there is the value's loss
        assert abs(loss) < (1e-6 if type(objective) in (Grpo, Reinforce, Rloo) else 1)


def test_what_cannot_be_learnt_from_is_refused(case):
    params, batch, _ = case
    with pytest.raises(InputError, match=r"Grpo learns from completions: set data=Rollouts\(...\)"):
        Grpo()(Given(), params, FROZEN, {k: v for k, v in batch.items() if k != "old_BT"}, None)
    with pytest.raises(InputError, match=r"model must be .*ActorCritic"):
        Ppo()(Given(), params, FROZEN, batch, None)


@pytest.mark.parametrize("objective", [Grpo(), DrGrpo(), Dapo(), Rloo()], ids=lambda o: type(o).__name__)
def test_a_completion_alone_is_compared_with_none(objective):
    alone = Rollout(np.ones(2), *(np.ones((2, 3)) for _ in range(4)), group=1)
    name = type(objective).__name__
    with pytest.raises(InputError, match=rf"{name} compares completions of one prompt: data.group must be 2 or more"):
        objective.credit(alone, 0.0)


def test_the_spread_that_is_logged_is_the_one_that_advantages_are_divided_by():
    """As torch.std has it, and so trl: of a sample."""
    reward_B = np.random.default_rng(3).normal(size=8)
    zeros = np.zeros((8, 3))
    rollout = Rollout(reward_B, zeros + 1, zeros, zeros, zeros, group=4)
    expected_B = np.repeat(torch.from_numpy(reward_B).reshape(2, 4).std(1).numpy(), 4)
    np.testing.assert_allclose(rollout.spread_B(), expected_B)
    centred_B = reward_B - np.repeat(reward_B.reshape(2, 4).mean(1), 4)
    np.testing.assert_allclose(Grpo().credit(rollout, 0.0).advantage_BT[:, 0], centred_B / (expected_B + 1e-4))
    alone = Rollout(reward_B, zeros + 1, zeros, zeros, zeros, group=1)
    np.testing.assert_array_equal(alone.spread_B(), np.zeros(8))


def test_groups_without_a_spread_are_counted():
    """However rounding would have it: 0.1 three times over has a deviation of 1.7e-17."""
    reward_B, zeros = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.2]), np.zeros((6, 3))
    rollout = Rollout(reward_B, zeros + 1, zeros, zeros, zeros, group=3)
    np.testing.assert_array_equal(rollout.tied_B(), [1, 1, 1, 0, 0, 0])
    alone = Rollout(reward_B[:1], zeros[:1] + 1, zeros[:1], zeros[:1], zeros[:1], group=1)
    with pytest.raises(InputError, match="Reinforce compares a completion with the rollout's mean"):
        Reinforce().credit(alone, 0.0)
