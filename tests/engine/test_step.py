"""The step: microbatches, steps that are skipped, averages, precision, and what evaluation says."""

import dataclasses
import itertools
import math
import time
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm_jax.core.errors import InputError
from llm_jax.engine.evaluation import evaluate, means
from llm_jax.engine.step import Program
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Untied
from llm_jax.layers.moe import Capacity, MoE
from llm_jax.layers.tokens import Tokens
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW, Muon
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant, Linear
from llm_jax.runs import metrics
from llm_jax.training import throughput
from llm_jax.training.loop import train


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@dataclasses.dataclass(frozen=True)
class Explodes(NextToken):
    """Not a number wherever the batch holds the byte 0x00."""

    def __call__(self, model, params, frozen, batch, key):
        sums = super().__call__(model, params, frozen, batch, key)
        return sums | {"loss": sums["loss"] * jnp.where((batch["targets_BT"] == 0).any(), jnp.nan, 1.0)}


def exploding(batch):
    targets_BT = batch["targets_BT"].copy()
    targets_BT[3, 2] = 0
    return batch | {"targets_BT": targets_BT}


@pytest.fixture(scope="module")
def trained(tiny, stepper, batches):
    """Two steps of the plain experiment, the second on a batch that explodes, and the states after each."""
    run = stepper(tiny.override({"objective": Explodes(), "log_every": 5, "ema": 0.75}))
    states, told = [run.kept()], []
    for batch in (batches[0], exploding(batches[1]), exploding(batches[2]), batches[3]):
        told.append(jax.device_get(run(batch)))
        states.append(run.kept())
    return run, states, told


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(trained):
    _, states, told = trained
    for after in states[2:4]:
        for name in ("params", "optimizer", "average", "sums"):
            same(getattr(after, name), getattr(states[1], name))
    assert [int(s.step) for s in states] == [0, 1, 2, 3, 4]
    assert [int(s.skipped) for s in states] == [0, 0, 1, 2, 2]
    assert [int(s.skipped_in_a_row) for s in states] == [0, 0, 1, 2, 0]
    assert [int(s.longest_streak) for s in states] == [0, 0, 1, 2, 2]
    assert np.isnan(told[1]["gradient_norm"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[3].params, states[4].params)
    assert max(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.parametrize("cls", [AdamW, Muon])
def test_after_skipped_steps_all_is_as_if_they_had_not_been_but_the_schedule(cls, tiny, stepper, batches):
    optimizer = cls(schedule=Linear(warmup=1), weight_decay=0.1)
    wanted = dict(objective=Explodes(), optimizer=optimizer, ema=0.9, log_every=9)
    skipping, jumping = (stepper(tiny.override(wanted)) for _ in range(2))
    jumping.program = skipping.program  # one compilation
    for batch in (batches[0], exploding(batches[1]), exploding(batches[2]), batches[3]):
        told = skipping(batch)
    jumping(batches[0])
    jumping.state = dataclasses.replace(jumping.state, step=jumping.state.step + 2, skipped=jumping.state.skipped + 2)
    assert jumping(batches[3])["learning_rate"] == told["learning_rate"] == pytest.approx(
        optimizer.learning_rate * (1 - (3 - 1) / (6 - 1))
    )  # fmt: skip
    for part in ("params", "optimizer", "average", "sums"):
        same(getattr(skipping.kept(), part), getattr(jumping.kept(), part))


def test_the_first_step_that_is_taken_is_a_whole_one(tiny, stepper, batches):
    """Adam's first is the rate times the gradient's sign, however many were skipped before it."""
    optimizer = AdamW(learning_rate=3e-3, schedule=Constant(), weight_decay=0.0, epsilon=1e-20)
    run = stepper(tiny.override({"objective": Explodes(), "optimizer": optimizer}))
    begun = run.kept().params
    for _ in range(5):
        run(exploding(batches[1]))
    same(run.kept().params, begun)
    run(batches[0])
    moved = jax.tree.map(lambda a, b: np.abs(a - b), run.kept().params, begun)
    kernel = moved["stack"]["layers"]["block_0"]["ffn"]["up"]["kernel"]
    np.testing.assert_allclose(kernel, 3e-3, rtol=1e-3)


@dataclasses.dataclass(frozen=True)
class Divides(AdamW):
    """Its update is no number wherever a gradient is 0, as at words that a batch does not hold."""

    def rule(self, rate, decays, boxed):
        rule = super().rule(rate, decays, boxed)
        return optax.chain(rule, optax.stateless(lambda updates, params: jax.tree.map(lambda u: u * u / u, updates)))


@pytest.mark.parametrize("optimizer", [AdamW(epsilon=0.0), Divides(weight_decay=0.0)])
def test_an_update_that_is_not_finite_is_not_taken_though_the_gradient_is(optimizer, tiny, stepper, batches):
    run = stepper(tiny.override({"optimizer": optimizer, "model.head": Untied(), "ema": 0.5, "log_every": 5}))
    begun = run.kept()
    norms = [float(run(batch)["gradient_norm"]) for batch in batches[:2]]
    after = run.kept()
    assert np.isfinite(norms).all() and int(after.skipped) == int(after.longest_streak) == 2
    for name in ("params", "optimizer", "average", "sums"):
        same(getattr(after, name), getattr(begun, name))


def test_a_state_is_shown_in_a_line(trained):
    state = trained[1][4]
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert repr(state) == f"TrainState(step=4, {count:,} trained parameters)"


def test_the_average_decays(trained):
    _, states, _ = trained
    # the first decay is 1 / 10, below the setting: the random beginning leaves soon
    expected = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, states[0].params, states[1].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), states[1].average, expected)
    same(states[1].best, states[1].average)


def test_the_step_compiles_once(trained):
    assert trained[0].program.update._cache_size() == 1


def test_training_lowers_what_is_auxiliary_and_logs_it_apart(tiny, stepper, batches):
    """A mixture's losses are in the gradient, but the loss is the cross-entropy; by microbatches as all at once."""
    mixture = MoE(8, experts=4, dispatch=Capacity(0.5), balance=2.0, z=0.5)
    blocks = (Block(Attention(1, 1, 8), mixture),)
    run = stepper(tiny.override({"model.stack.pattern": blocks, "microbatches": 2, "log_every": 5}))
    model, params = run.program.experiment.model, run.kept().params

    @jax.jit
    def wanted(params):
        def total(params):
            sums = NextToken()(model, params, None, batches[0], jax.random.key(0))
            return (sums["loss"] + sums["auxiliary"]) / sums["weight"], sums

        gradients, sums = jax.grad(total, has_aux=True)(params)
        return optax.tree.norm(gradients), sums

    norm, sums = wanted(params)
    told, found = run(batches[0]), run.kept().sums
    np.testing.assert_allclose(told["gradient_norm"], norm, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, sums)
    logged = means(found)
    np.testing.assert_allclose(logged["auxiliary"], 2 * logged["load_balance"] + 0.5 * logged["router_z"], rtol=1e-5)
    assert 0 < logged["dropped"] < 1 and logged["loss"] == float(found["loss"]) / float(found["weight"])


def test_sums_are_those_since_the_last_log(trained, batches):
    _, states, _ = trained
    assert states[4].sums["weight"] == batches[0]["weight_BT"].sum() + batches[3]["weight_BT"].sum()


def test_patience_ends_in_one_clear_line(tiny, tmp_path):
    experiment = tiny.override({"optimizer.learning_rate": 1e30, "optimizer.clip": 0.0, "patience": 2, "log_every": 1})
    with pytest.raises(InputError, match=r"not finite in 2 steps in a row, up to step \d: lower optimizer"):
        train(experiment.override({"steps": 40, "eval_every": 50, "save_every": 50}), tmp_path)
    assert metrics.read(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize("count", [2, 4])
def test_microbatches_change_nothing(count, tiny, stepper, batches):
    """Though they hold unequal weights: the step divides once."""
    weight_BT = batches[0]["weight_BT"] * (np.arange(8) % 4 != 1)[:, None].astype(np.float32)
    weight_BT[5, 3:] = 0
    runs = [stepper(tiny.override({"microbatches": n})) for n in (1, count)]
    for batch in (batches[0] | {"weight_BT": weight_BT}, batches[1]):
        norms = [run(batch)["gradient_norm"] for run in runs]
        np.testing.assert_allclose(*norms, rtol=1e-5)
    states = [run.kept() for run in runs]
    for name, atol in (("optimizer", 2e-6), ("params", 1e-5)):
        pairs = zip(*(jax.tree.leaves(getattr(state, name)) for state in states), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tiny, stepper, batches):
    dropping = tiny.override({"model.stack.pattern.0.dropout": 0.2})
    first, second = stepper(dropping), stepper(dropping)
    other = stepper(dropping.override({"seed": 1}))
    for run in (first, second, other):
        run(batches[0])
    same(first.kept(), second.kept())
    assert np.abs(first.kept().params["embed"]["table"] - other.kept().params["embed"]["table"]).max() > 1e-3


def test_seeds_beyond_32_bits_are_seeds_of_their_own(tiny):
    """For parameters, and for the order of the data; for what is sampled, see tests/inference."""
    drawn = [
        np.asarray(Program(tiny.override({"seed": seed}), tiny.layout.mesh()).draw()["embed"]["table"])
        for seed in (0, 2**32, 2**33)
    ]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(drawn, 2)) > 1e-3


def test_overfits_one_batch_and_bfloat16_comes_close(tiny, stepper, batches):
    losses = {}
    for compute in ("float32", "bfloat16"):
        run = stepper(tiny.override({"precision.compute": compute, "optimizer.learning_rate": 1e-2, "log_every": 1}))
        for _ in range(150):
            run(batches[0])
        sums = jax.device_get(run.state.sums)
        losses[compute] = sums["loss"] / sums["weight"]
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((run.state.params, run.state.sums)))
    assert losses["float32"] < 1.0 < math.log(272) and abs(losses["bfloat16"] - losses["float32"]) < 0.1


def test_precision_casts_floats_alone():
    cast = Precision("bfloat16").cast({"w": jnp.ones(2), "n": jnp.ones(2, jnp.int32)})
    assert cast["w"].dtype == jnp.bfloat16 and cast["n"].dtype == jnp.int32


@pytest.mark.filterwarnings("ignore:.*float64.*")
def test_evaluation_is_that_of_float64(tiny, tokenizer):
    """Over every target of the split, and in bits of the text's own bytes."""
    program = Program(tiny, tiny.layout.mesh())
    params = program.begin().params
    held_out = list(tiny.data.evaluation(tokenizer))
    found = evaluate(program, params, held_out)
    apply = jax.jit(lambda tokens_BT, at: tiny.model.apply({"params": params}, tokens_BT, at)[0])
    loss = weight = right = bytes_ = 0.0
    for batch in held_out:
        score_BTV = np.asarray(apply(batch["tokens_BT"], Tokens(batch["position_BT"], batch["segment_BT"])), np.float64)
        score_BTV -= score_BTV.max(-1, keepdims=True)
        log_BTV = score_BTV - np.log(np.exp(score_BTV).sum(-1, keepdims=True))
        chosen_BT = np.take_along_axis(log_BTV, batch["targets_BT"][..., None], -1)[..., 0]
        loss -= (chosen_BT * batch["weight_BT"]).sum()
        weight += batch["weight_BT"].sum()
        right += ((score_BTV.argmax(-1) == batch["targets_BT"]) * batch["weight_BT"]).sum()
        bytes_ += (batch["bytes_BT"] * batch["weight_BT"]).sum()
    text = sum(len(document.text().encode()) for document in tiny.data.documents("validation"))
    assert bytes_ == text, "each byte of a document is a target, since bos comes before it"
    assert found["loss"] == pytest.approx(loss / weight, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(loss / weight), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(loss / math.log(2) / text, rel=1e-6)
    assert found["accuracy"] == pytest.approx(right / weight)


def test_nothing_to_learn_is_refused(tiny, tokenizer):
    with pytest.raises(InputError, match="every loss weight is 0"):
        means({"weight": 0.0, "loss": 0.0})
    program = Program(tiny, tiny.layout.mesh())
    empty = [b | {"weight_BT": 0 * b["weight_BT"]} for b in tiny.data.evaluation(tokenizer)]
    with pytest.raises(InputError, match="every loss weight is 0"):
        evaluate(program, program.begin().params, empty)


def test_means_by_their_names():
    found = means({"weight": 4.0, "loss": 8 * math.log(2), "bytes": 2.0, "correct": 3.0})
    assert found == pytest.approx(dict(loss=2 * math.log(2), perplexity=4.0, bits_per_byte=4.0, accuracy=0.75))
    assert "bits_per_byte" not in means({"weight": 1.0, "loss": 1.0, "bytes": 0.0})


@pytest.mark.parametrize(
    ("kind", "name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "H100", 989e12), ("NVIDIA A100-SXM4-80GB", "A100", 312e12),
        ("NVIDIA L4", "L4", 121e12), ("NVIDIA L40S", "", 0), ("TPU v5 lite", "TPU v5 lite", 197e12),
        ("TPU v5p", "TPU v5p", 459e12),
    ],
)  # fmt: skip
def test_peaks_are_found_by_whole_words(kind, name, peak, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(throughput.jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    monkeypatch.setattr(throughput, "_timed", lambda function, a: 1e-3)
    found, source = throughput.peak_flops.__wrapped__("float32")
    if name:
        assert found == peak and source == f"the published bfloat16 peak of {name} (this run computes in float32)"
    else:
        assert found == 2 * 2048**3 / 1e-3 and "a float32 matrix product on this machine, timed at start" in source


def test_the_best_product_ever_timed_is_the_peak(monkeypatch, tmp_path):
    """Whatever other work takes of the machine; of another dtype or number of cores it says nothing."""
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path))
    seconds = [1e-3]
    monkeypatch.setattr(
        throughput, "_product", lambda size, dtype: [size / 1024 * s for s in (*seconds, seconds[0] * 9)]
    )
    peak = throughput.peak_flops.__wrapped__
    best = 2 * 2048**3 / 2e-3
    assert peak("float32") == (best, "a float32 matrix product on this machine, timed at start: the best so far")
    seconds[0] = 4e-3  # beside other work
    source = f"the best float32 matrix product ever timed on this machine ({best / 4:.3g} just now)"
    assert peak("float32") == (best, source)
    assert peak("bfloat16")[0] == best / 4
    with monkeypatch.context() as fewer:
        fewer.setattr(throughput, "_cores", lambda: 1_000)
        assert peak("float32")[0] == best / 4
    seconds[0] = 0.5e-3
    assert peak("float32")[0] == best * 2
    for file in (tmp_path / "peaks").iterdir():
        file.write_text('{"flops": "nan"}' if file.stat().st_size % 2 else "torn")
    assert peak("float32")[0] == best * 2


def test_virtual_devices_share_one_processor():
    def mesh(platform, *hosts) -> Any:
        devices = [SimpleNamespace(platform=platform, process_index=host) for host in hosts]
        return SimpleNamespace(devices=np.array(devices, object))

    assert throughput.processors(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])) == 1
    assert throughput.processors(jax.make_mesh((8,), ("data",))) == 1
    assert throughput.processors(mesh("cpu", 0, 0, 1, 1)) == 2
    assert throughput.processors(mesh("gpu", 0, 0, 1, 1)) == 4


def test_an_mfu_above_one_is_not_shown_and_mends_the_peak(tiny, monkeypatch, stepper, tmp_path):
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path))
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(throughput, "peak_flops", lambda dtype: (1e3, "timed beside other work"))
    monkeypatch.setattr(throughput, "timed_now", lambda dtype: 1e4)
    run = stepper(tiny)
    counted = throughput.Speed(run.program)
    counted.step(run.state)
    for seconds, mfu in ((0.5, None), (1.0, 0.5), (0.25, None), (0.5, 0.5)):
        now[0] += seconds
        counted.step(run.state)
        found = counted.since_last()
        assert found["tokens_per_second"] == pytest.approx(8 * 16 / seconds)
        assert found.get("mfu") == (None if mfu is None else pytest.approx(mfu))
    assert throughput.keep_best(0.0, run.program.experiment.precision.compute) > 1e3, "and the next run knows it"


def test_the_speed_of_a_training_leaves_out_what_is_written_of_it(tiny, monkeypatch, tmp_path):
    """The first line imports TensorBoard's writer, and torch where it is installed: seconds."""
    write, slow = metrics.MetricsLog.write, [2.0]

    def written(self, step, split, found):
        time.sleep(slow.pop() if slow else 0)
        write(self, step, split, found)

    monkeypatch.setattr(metrics.MetricsLog, "write", written)
    train(tiny.override({"steps": 3, "log_every": 1, "eval_every": 3}), tmp_path)
    speeds: list[Any] = [
        line.get("tokens_per_second") for line in metrics.read(tmp_path / "metrics.jsonl") if line["split"] == "train"
    ]
    assert speeds[0] is None and min(speeds[1:]) > 8 * 16 / 1.0


def test_speed_counts_steps_and_not_pauses(tiny, monkeypatch, stepper):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(throughput, "peak_flops", lambda dtype: (1e9, "a number"))
    run = stepper(tiny)
    counted = throughput.Speed(run.program)
    assert counted.since_last() == {}
    counted.step(run.state)  # compiles: not counted
    for _ in range(4):
        now[0] += 0.5
        counted.step(run.state)
    with counted.paused():
        now[0] += 30
    found = counted.since_last()
    assert found["tokens_per_second"] == pytest.approx(8 * 16 / 0.5)
    matrices = 4 * 16 * 16 + 3 * 16 * 24 + 272 * 16
    assert found["mfu"] == pytest.approx(8 * 16 * (6 * matrices + 12 * 16 * 16) / 0.5 / 1e9)
    now[0] += 1.0
    counted.step(run.state)
    assert counted.since_last()["tokens_per_second"] == pytest.approx(8 * 16)
