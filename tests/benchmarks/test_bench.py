"""The benchmark's arithmetic, its alternation, and its rival; tiny shapes only."""

from __future__ import annotations

import contextlib
import functools
import io
import statistics
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from benchmarks import bench
from benchmarks.bench import Result, alternate, main, measure, ratio, table
from benchmarks.contender import SHAPES, Shape
from llm_jax.core.errors import InputError
from llm_jax.core.parts import override

TINY = Shape(layers=2, heads=2, width=16, context=80, batch=2, vocabulary=32, decode=(1, 2))


class Scripted:
    """Stands in for a process: answers with the seconds it was given, and notes when it was asked."""

    def __init__(self, name: str, seconds: list[float], log: list[str]):
        self.name, self.script, self.log = name, iter(seconds), log

    def seconds(self, method: str, *arguments: int, times: int = 1) -> float:
        self.log.append(f"{self.name}{times}")
        return next(self.script)


def result(contender: str, *seconds: float, task: str = "train") -> Result:
    return Result("tiny", "float32", contender, task, seconds, 100, 0.5, 2**20)


def test_gpt2_has_its_published_number_of_parameters():
    gpt2 = SHAPES["gpt2_124m"]
    assert gpt2.parameters == 123_551_232  # 124,439,808 less 786,432 positions and 102,144 biases
    assert gpt2.flops_per_token == 6 * 123_551_232 + 12 * 12 * 768 * 1024


def test_contenders_take_turns_forwards_and_backwards_after_warming_up():
    log: list[str] = []
    seconds = [9.0, 0.1, 1.0, 2.0, 3.0]
    found = alternate({"a": Scripted("a", seconds, log), "b": Scripted("b", seconds, log)}, 3, "train_step", turn=0.5)  # pyright: ignore[reportArgumentType]
    assert log == ["a1", "a1", "b1", "b1", "a5", "b5", "b5", "a5", "a5", "b5"]
    assert found == {"a": (1.0, 2.0, 3.0), "b": (1.0, 2.0, 3.0)}


def test_the_ratio_is_the_median_over_rounds_and_not_the_ratio_of_medians():
    ours, other = result("ours", 1.0, 8.0, 3.0), result(bench.REFERENCE, 1.0, 2.0, 4.0)
    elsewhere = result(bench.REFERENCE, 9.0, 9.0, 9.0, task="decode 1")
    assert ratio(ours, [elsewhere, ours, other]) == statistics.median([1.0, 4.0, 0.75]) == 1.0
    assert ratio(ours, [ours]) is None


def test_table_shows_every_result():
    page = io.StringIO()
    Console(width=200, file=page).print(table([result("ours", 0.5), result(bench.REFERENCE, 0.25)]))
    ours = next(line.split() for line in page.getvalue().splitlines() if "ours" in line)
    assert {"200", "500.0", "50%", "1", "2.00"} <= set(ours)


def test_measure_runs_every_task_in_processes_of_their_own(monkeypatch):
    import torch

    torch.get_num_threads()  # skips the test where PyTorch is absent
    monkeypatch.setattr(bench, "MATMULS", (32, 64))
    makers = {"ours": bench.torch_contender, bench.REFERENCE: bench.torch_contender}
    ability, results = measure(makers, "tiny", TINY, "float32", rounds=3, turn=0.01)
    assert ability > 1e6
    assert [(r.task, r.contender) for r in results] == [
        (task, who) for task in ("train", "decode 1", "decode 2") for who in makers
    ]
    assert all(len(r.seconds) == 3 and (ratio(r, results) or 0) > 0 for r in results)
    assert all((r.memory or 0) > 2**24 and (r.mfu or 0) > 0 for r in results if r.task == "train")


def test_contenders_on_unlike_machines_are_not_compared(monkeypatch):
    apart = {"ours": SimpleNamespace(platform="gpu"), bench.REFERENCE: SimpleNamespace(platform="cpu")}
    monkeypatch.setattr(bench, "remotes", lambda *_: contextlib.nullcontext(apart))
    with pytest.raises(InputError, match="ours on the gpu, torch on the cpu: install both for the GPU"):
        measure({}, "tiny", TINY, "float32", rounds=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes=six_348"], "bench: no shape named 'six_348': did you mean 'six_384'?"),
        (["--precisions=float23"], "bench: no precision named 'float23': did you mean 'float32'?"),
        (["--rounds=0"], "bench: --rounds must be 1 or more, not 0"),
        (["--batch=0"], "bench: --batch must be 1 or more, not 0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, said, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines() == [said]


def test_without_torch_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "benchmarks.torch_reference", raising=False)
    with pytest.raises(InputError, match="PyTorch, which is missing"):
        bench.torch_contender(TINY, "float32")


def test_what_a_contender_refuses_in_its_process_is_raised_here():
    refuse = functools.partial(override, value=0)  # raises, and another process can import it
    with pytest.raises(InputError, match="has no 'float32' inside"):
        bench.Remote(refuse, TINY, "float32")


def test_torch_counts_the_parameters_that_the_shape_says():
    from benchmarks import torch_reference as reference

    model = reference.Gpt(TINY)
    assert sum(p.numel() for p in model.parameters()) == TINY.parameters + TINY.context * TINY.width


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_torch_learns_its_batch(precision):
    contender = bench.torch_contender(TINY, precision)
    losses = [contender.train_step() for _ in range(30)]
    assert losses[0] == pytest.approx(3.47, abs=0.1)  # ln 32
    assert losses[-1] < losses[0] - 0.3


def test_torch_decodes_with_a_cache_as_without():
    import torch

    from benchmarks import torch_reference as reference

    contender = reference.TorchContender(TINY, "float32")
    written = contender.decode(2, 8)
    ids = list(range(reference.PROMPT))
    with torch.inference_mode():
        for token in written[0]:
            assert int(contender.model(torch.tensor([ids], device=reference.DEVICE))[0, -1].argmax()) == token
            ids.append(token)
    assert written[0] == written[1]
