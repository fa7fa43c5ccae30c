"""A step on eight devices, however laid out, is the step on one device, and the partitioner warns of nothing."""

from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from llm_jax.core.errors import InputError
from llm_jax.core.quantized import Nf4
from llm_jax.data.images import Digits, Images
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import PythonHelp
from llm_jax.engine.step import Program
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Untied
from llm_jax.layers.feedforward import FeedForward, SwiGLU
from llm_jax.layers.kernels import Chunked, Splash
from llm_jax.layers.masks import Full
from llm_jax.layers.moe import Capacity, MoE
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Alibi, Learned, Rope
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.models.vision import Captioner, ImageClassifier, ImageEncoder, Patches
from llm_jax.objectives.classification import Classification
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import Adafactor, AdamW, Lion, Muon
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant
from llm_jax.optim.trainable import Dora, Lora
from llm_jax.parallel.layout import Layout, place
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.text.recipes import Bytes

ROWS, LENGTH = 16, 12
LAYOUTS = dict(eight=Layout(8), fsdp=Layout(2, 4), all=Layout(2, 2, 2))
PLAIN = Block(Attention(2, 2, 8, dropout=0.1), SwiGLU(24), dropout=0.1)
BASE = Experiment(
    model=Decoder(Embed(16, 64, dropout=0.1), Stack((PLAIN,), 2), Rope()),
    tokenizer=Bytes(),
    data=Data(PythonHelp(), length=LENGTH, batch=ROWS),
    objective=NextToken(),
    optimizer=AdamW(schedule=Constant()),
    layout=Layout(1),
    precision=Precision(),
    steps=10,
)
# no bias of the keys: its gradient is 0 but for rounding, which the optimiser makes large
MULTI_QUERY = Block(Attention(1, 4, 8, out_bias=True, dropout=0.1), FeedForward(24, bias=True), LayerNorm())
READING = Block(Attention(2, 2, 8, Full(), dropout=0.1), SwiGLU(24), dropout=0.1)
IMAGE = ImageEncoder(Patches(16, (8, 8), 4, 1, dropout=0.1), Stack((READING,), 2), Learned(5))
PICTURES = Images(Digits(), length=LENGTH, batch=ROWS)
CASES = {
    "tied, grouped queries, AdamW": {},
    "untied, multi-query, learned positions, Muon, microbatches": {
        "model.head": Untied(), "model.positions": Learned(LENGTH), "model.stack": Stack((MULTI_QUERY,), 2),
        "optimizer": Muon(schedule=Constant()), "microbatches": 2,
    },
    "odd vocabulary, Adafactor, average, microbatches": {
        "model.embed": Embed(16, 67), "model.head": Untied(bias=True), "microbatches": 2, "ema": 0.9,
        "optimizer": Adafactor(schedule=Constant(), smallest=8, momentum=0.9),
    },
    "odd vocabulary tied, scanned, chunked, ALiBi, Lion": {
        "model.embed": Embed(16, 67, dropout=0.1), "model.positions": Alibi(), "optimizer": Lion(schedule=Constant()),
        "model.stack": Stack((Block(Attention(2, 2, 8, kernel=Chunked(4, 4)), SwiGLU(24)),), 2, "scan", "full"),
    },
    "experts with little room, untied, microbatches": {
        # an expert that hardly a token came to has gradients near rounding: Adam is not to make these large
        "model.head": Untied(), "microbatches": 2, "optimizer": AdamW(schedule=Constant(), epsilon=1e-5),
        "model.stack": Stack((Block(Attention(2, 2, 8), MoE(24, experts=4, dispatch=Capacity(0.75))),), 2),
    },
    "splash, scanned": {
        "model.stack": Stack((Block(Attention(2, 2, 8, kernel=Splash(128, True)), SwiGLU(24)),), 1, "scan", "full"),
    },
    "experts without drops, scanned": {
        "model.stack": Stack((Block(Attention(2, 2, 8), MoE(24, experts=4)),), 2, "scan", "dots"),
    },
    "adapters, scanned, microbatches": {
        "model.stack": Stack((PLAIN,), 2, "scan", "full"), "tuning": Dora(4, also=("norm.scale",)), "microbatches": 2,
    },
    "adapters on quantised weights, Muon": {"tuning": Lora(4, base=Nf4(32)), "optimizer": Muon(schedule=Constant())},
    "a captioner": {"model": Captioner(IMAGE, Decoder(Embed(16, 64), Stack((PLAIN,), 1))), "data": PICTURES},
    "an image classifier": {
        "model": ImageClassifier(IMAGE, classes=10), "data": PICTURES, "objective": Classification(smoothing=0.1),
    },
}  # fmt: skip


def batch():
    rng = np.random.default_rng(0)
    shape = (ROWS, LENGTH)
    segment = (np.arange(LENGTH) >= 7).astype(np.int32) * np.ones(shape, np.int32)
    segment[:, -1:] = -1
    position = np.where(np.arange(LENGTH) >= 7, np.arange(LENGTH) - 7, np.arange(LENGTH)).astype(np.int32)
    return dict(
        tokens_BT=rng.integers(0, 64, shape, np.int32), targets_BT=rng.integers(0, 64, shape, np.int32),
        weight_BT=(rng.random(shape) < 0.7).astype(np.float32), segment_BT=segment,
        position_BT=np.broadcast_to(position, shape).copy(), bytes_BT=np.ones(shape, np.int32),
        image_BYXA=rng.random((ROWS, 8, 8, 1), np.float32), label_B=rng.integers(0, 10, ROWS, np.int32),
    )  # fmt: skip


def measured(experiment):
    """The state after each of two steps, with their gradients' norms. The first moments are those of the gradients."""
    program = Program(experiment, experiment.layout.mesh())
    placed = place(batch(), program.mesh)
    seen = []
    with jax.set_mesh(program.mesh):
        state = program.begin()
        for _ in range(2):
            state, metrics = program.update(state, placed)
            seen.append(jax.device_get((state, metrics)))
    return seen, state, program


@pytest.fixture(scope="module")
def one_device():
    known = {}

    def of(case):
        if case not in known:
            known[case] = measured(BASE.override(CASES[case]))[0]
        return known[case]

    return of


PAIRS = [(case, layout) for case in CASES for layout in LAYOUTS]
FAST = {*((case, "all") for case in CASES), *((next(iter(CASES)), layout) for layout in LAYOUTS)}


@pytest.mark.parametrize(
    ("case", "layout"), [p if p in FAST else pytest.param(*p, marks=pytest.mark.slow) for p in PAIRS]
)
def test_a_step_is_that_of_one_device(case, layout, one_device, capfd):
    expected = one_device(case)
    capfd.readouterr()
    found, state, program = measured(BASE.override(CASES[case] | {"layout": LAYOUTS[layout]}))
    said = capfd.readouterr()
    assert said.err == "" and said.out == "", "the partitioner warns"
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(1, np.abs(b).max()), err_msg=name)
    for x, planned in zip(jax.tree.leaves(state), jax.tree.leaves(program.template), strict=True):
        assert x.sharding.is_equivalent_to(planned.sharding, x.ndim)


def test_weights_and_their_moments_are_split():
    """Over tensor and fsdp, as their letters say; what does not divide is copied."""
    program = Program(BASE.override({"layout": Layout(2, 2, 2)}), Layout(2, 2, 2).mesh())
    block = program.template.params["stack"]["layers"]["block_0"]
    assert block["attention"]["query"]["kernel"].sharding.spec == P(None, "fsdp", "tensor", None, None)
    assert block["attention"]["out"]["kernel"].sharding.spec == P(None, "tensor", None, None, "fsdp")
    assert block["ffn"]["down"]["kernel"].sharding.spec == P(None, "tensor", "fsdp")
    moments = {
        x.sharding.spec
        for path, x in jax.tree_util.tree_leaves_with_path(program.template.optimizer)
        if "query" in jax.tree_util.keystr(path)
    }
    assert moments == {block["attention"]["query"]["kernel"].sharding.spec}
    odd = Program(BASE.override({"layout": Layout(2, 2, 2), "model.stack": Stack((MULTI_QUERY,), 2)}), program.mesh)
    one_key = odd.template.params["stack"]["layers"]["block_0"]["attention"]["key"]["kernel"]
    assert one_key.sharding.spec == P(None, "fsdp", None, None)


def test_a_checkpoint_restores_in_another_layout(tmp_path):
    seen, state, _ = measured(BASE.override({"layout": Layout(2, 2, 2)}))
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(2, state, {}, {})
    for layout in (Layout(1), Layout(4, 2)):
        program = Program(BASE, layout.mesh())
        with Checkpoints(tmp_path, {}) as checkpoints:
            found = checkpoints.restore(program.template)
        assert found is not None
        restored = found.state
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), seen[-1][0])
        for x, planned in zip(jax.tree.leaves(restored), jax.tree.leaves(program.template), strict=True):
            assert x.sharding.is_equivalent_to(planned.sharding, x.ndim)


@pytest.mark.parametrize("layout", [Layout(9), Layout(2, 8), Layout(0), Layout(-2), Layout(-1, 16), Layout(1, 1, 0)])
def test_a_layout_that_does_not_fit(layout):
    with pytest.raises(InputError, match=r"layout .* \(data x fsdp x tensor\) does not fit on 8 device"):
        layout.mesh()


def test_the_rest_of_the_devices_share_the_batch():
    assert Layout().mesh().shape["data"] == 8 and Layout(tensor=4).mesh().shape["data"] == 2
    assert Layout(tensor=3).mesh().size == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch": 12, "layout": Layout(8)}, "a batch of 12 rows cannot be divided over data x fsdp = 8 devices"),
        ({"microbatches": 4, "layout": Layout(8)}, "a batch of 4 rows cannot be divided over data x fsdp = 8 devices"),
        ({"microbatches": 3}, "data.batch=16 cannot be divided into microbatches=3"),
    ],
)
def test_a_batch_that_does_not_divide(changes, message):
    experiment: Any = BASE.override(changes)
    with pytest.raises(InputError, match=message):
        _ = Program(experiment, experiment.layout.mesh()).update
