"""Preference losses and their gradients beside TRL's own trainers, which get the same scores in place of a model."""

from __future__ import annotations

import collections
import types
import warnings
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from llm_jax.models.heads import Scorer
from llm_jax.models.model import Generator
from llm_jax.objectives.preferences import BradleyTerry, Dpo, DpoNorm, Ipo, Kto, Orpo, SimPo, mismatched

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

B, T, V = 5, 9, 13


class Given(Generator):
    """A model whose scores, the same of any texts, are its parameters."""

    @nn.compact
    def predict(self, batch, dropout_key):
        return self.param("score", nn.initializers.zeros, (2 * B, T, V))


class Judged(Scorer):
    """Rewards that are its parameters."""

    @nn.compact
    def reward(self, tokens_BT, at=None, *, dropout_key=None):
        return self.param("reward", nn.initializers.zeros, (2 * B,))


@pytest.fixture(params=[0, 1, 2])
def drawn(request):
    """A batch of pairs with prompts and replies of random lengths, scores, and a reference's."""
    rng = np.random.default_rng(request.param)
    ids_NT, weight_NT = rng.integers(0, V, (2 * B, T)).astype(np.int32), np.zeros((2 * B, T), np.float32)
    segment_NT = np.full((2 * B, T), -1, np.int32)
    for n in range(2 * B):
        size, prompt = rng.integers(4, T + 1), rng.integers(1, 3)
        weight_NT[n, prompt - 1 : size - 1] = 1
        segment_NT[n, :size] = 0
    texts = dict(
        tokens_BT=ids_NT, targets_BT=np.roll(ids_NT, -1, 1), weight_BT=weight_NT, segment_BT=segment_NT,
        position_BT=np.where(segment_NT >= 0, np.arange(T)[None], 0).astype(np.int32),
    )  # fmt: skip
    batch = {name: x.reshape(B, 2 * T) for name, x in texts.items()}
    batch["margin_B"] = rng.uniform(0, 3, B).astype(np.float32)
    score, reference = (rng.normal(size=(2 * B, T, V)).astype(np.float32) * 2 for _ in range(2))
    return types.SimpleNamespace(texts=texts, batch=batch, score=score, reference=reference, rng=rng)


def ours(objective: Any, model: Any, params: Any, drawn: Any) -> Any:
    def loss(params):
        sums = objective(model, params, {"reference": {"score": drawn.reference}}, drawn.batch, None)
        return sums["loss"] / sums["weight"], sums

    (value, sums), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, next(iter(gradient.values())), {name: x / sums["weight"] for name, x in sums.items()}


def per_token(score, texts):
    """Each learnt token's log-probability, in PyTorch; 0 elsewhere."""
    targets = torch.tensor(texts["targets_BT"]).long()[..., None]
    return score.log_softmax(-1).gather(-1, targets)[..., 0] * torch.tensor(texts["weight_BT"])


def trainer(**settings: Any) -> Any:
    """What a trainer's loss reads of itself."""
    same = types.SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    return types.SimpleNamespace(
        model=types.SimpleNamespace(training=True), accelerator=same, aux_loss_enabled=False, _total_train_tokens=0,
        _tp_size=1, precompute_ref_logps=True, _metrics=dict(train=collections.defaultdict(list)), **settings,
    )  # fmt: skip


def told(logp_NT, drawn):
    """A model's answer, as TRL's fused heads give it, of texts one token longer than their targets."""
    zeros = torch.zeros(logp_NT.shape)
    return types.SimpleNamespace(log_probs=logp_NT, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def interleaved(x):
    """Texts as TRL has them, all chosen before all rejected."""
    return torch.cat([x[0::2], x[1::2]])


def check(found, wanted, gradient):
    np.testing.assert_allclose(found[0], wanted.item(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], gradient.numpy(), rtol=1e-5, atol=1e-5)


def imported(name: str, module: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(__import__(f"trl.{module}", fromlist=[name]), name)


@pytest.mark.parametrize("kind", ["sigmoid", "sigmoid_norm", "ipo"])
def test_dpo_and_ipo(kind, drawn):
    loss = imported("DPOTrainer", "trainer.dpo_trainer")._compute_loss
    score = torch.tensor(drawn.score, requires_grad=True)
    reference = per_token(torch.tensor(drawn.reference), drawn.texts).sum(1)
    mask = torch.nn.functional.pad(torch.tensor(drawn.texts["weight_BT"]), (1, 0))
    logp = interleaved(per_token(score, drawn.texts))
    self = trainer(
        ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], beta=0.3,
        label_smoothing=0.0, use_weighting=False,
    )  # fmt: skip
    inputs = dict(
        input_ids=torch.zeros(mask.shape).long(), attention_mask=torch.ones(mask.shape),
        completion_mask=interleaved(mask), ref_chosen_logps=reference[0::2], ref_rejected_logps=reference[1::2],
    )  # fmt: skip
    wanted = loss(self, lambda **_: told(logp, drawn), inputs, False)
    wanted.backward()
    found = ours(
        dict(sigmoid=Dpo, sigmoid_norm=DpoNorm, ipo=Ipo)[kind](beta=0.3), Given(), {"score": drawn.score}, drawn
    )
    check(found, wanted, score.grad)
    if kind == "sigmoid":
        names = dict(reward_chosen="chosen", reward_rejected="rejected", reward_margin="margins", correct="accuracies")
        for name, theirs in names.items():
            value = self._metrics["train"][f"rewards/{theirs}"][0]
            np.testing.assert_allclose(found[2][name], value, rtol=1e-4, atol=1e-5)


def test_kto(drawn):
    loss = imported("KTOTrainer", "trainer.kto_trainer")._compute_loss
    score = torch.tensor(drawn.score, requires_grad=True)
    reference = torch.tensor(drawn.reference)
    elsewhere = jax.tree.map(np.asarray, mismatched(drawn.texts))
    drift = [per_token(x.detach(), elsewhere).sum(1) for x in (score, reference)]
    mask = torch.nn.functional.pad(torch.tensor(drawn.texts["weight_BT"]), (1, 0))
    self = trainer(
        calculate_KL=True, loss_type="kto", beta=0.3, desirable_weight=1.2, undesirable_weight=0.7,
        _compute_kl_logps=lambda *_: drift[0],
    )  # fmt: skip
    batch = dict(
        input_ids=torch.zeros(mask.shape).long(), attention_mask=torch.ones(mask.shape), completion_mask=mask,
        label=torch.arange(2 * B) % 2 == 0, ref_logps=per_token(reference, drawn.texts).sum(1), ref_KL_logps=drift[1],
    )  # fmt: skip
    wanted = loss(self, lambda **_: told(per_token(score, drawn.texts), drawn), batch, False)
    wanted.backward()
    found = ours(Kto(0.3, desirable=1.2, undesirable=0.7), Given(), {"score": drawn.score}, drawn)
    check(found, wanted, score.grad)
    np.testing.assert_allclose(found[2]["kl"], self._metrics["train"]["kl"][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[2]["kl"], max(0, (drift[0] - drift[1]).mean().item()), rtol=1e-5, atol=1e-5)


def test_a_pair_alone_tells_nothing_of_the_divergence(drawn):
    """In a last batch of evaluation the other rows are padding: the divergence would be 0, whatever the policy."""
    assert ours(Kto(), Given(), {"score": drawn.score}, drawn)[2]["kl_weight"] == 1  # over the pairs
    drawn.batch["weight_BT"][1:], drawn.batch["segment_BT"][1:] = 0, -1
    found = ours(Kto(), Given(), {"score": drawn.score}, drawn)[2]
    assert found["weight"] == 1 and found["kl_weight"] == found["kl"] == 0


def test_orpo(drawn):
    ratio = imported("ORPOTrainer", "experimental.orpo.orpo_trainer").odds_ratio_loss
    score = torch.tensor(drawn.score, requires_grad=True)
    mean = per_token(score, drawn.texts).sum(1) / torch.tensor(drawn.texts["weight_BT"]).sum(1)
    losses, *_ = ratio(trainer(beta=0.3), mean[0::2], mean[1::2])
    wanted = (-mean[0::2] - losses).mean()
    wanted.backward()
    check(ours(Orpo(beta=0.3), Given(), {"score": drawn.score}, drawn), wanted, score.grad)


def test_simpo(drawn):
    loss = imported("CPOTrainer", "experimental.cpo.cpo_trainer").cpo_loss
    score = torch.tensor(drawn.score, requires_grad=True)
    mean = per_token(score, drawn.texts).sum(1) / torch.tensor(drawn.texts["weight_BT"]).sum(1)
    self = trainer(alpha=0.0, loss_type="simpo", simpo_gamma=0.7, beta=1.7, label_smoothing=0.0)
    losses, chosen, rejected = loss(self, mean[0::2], mean[1::2])
    losses.mean().backward()
    found = ours(SimPo(beta=1.7, gamma=0.7), Given(), {"score": drawn.score}, drawn)
    check(found, losses.mean(), score.grad)
    np.testing.assert_allclose(found[2]["reward_margin"], (chosen - rejected).mean().item(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("margin", "center"), [(0.0, None), (1.0, None), (1.0, 0.3)])
def test_bradley_terry(margin, center, drawn):
    loss = imported("RewardTrainer", "trainer.reward_trainer").compute_loss
    given = drawn.rng.normal(size=2 * B).astype(np.float32) * 3
    reward = torch.tensor(given, requires_grad=True)
    inputs = dict(attention_mask=torch.ones(2 * B, T))
    if margin:
        inputs["margin"] = torch.tensor(drawn.batch["margin_B"])
    self = trainer(args=types.SimpleNamespace(center_rewards_coefficient=center))
    wanted = loss(self, lambda **_: types.SimpleNamespace(logits=interleaved(reward)[:, None]), inputs)
    wanted.backward()
    found = ours(BradleyTerry(margin, center or 0.0), Judged(Given()), {"reward": given}, drawn)
    check(found, wanted, reward.grad)
    metrics = self._metrics["train"]
    np.testing.assert_allclose(found[2]["correct"], metrics["accuracy"][0], atol=1e-6)
    np.testing.assert_allclose(found[2]["reward_margin"], metrics["margin"][0], rtol=1e-5, atol=1e-5)
