"""How fast training and decoding are, beside plain PyTorch, on this machine.

    python -m benchmarks.bench --shapes=nanogpt_char,six_384 --rounds=5 --precisions=float32
    python -m benchmarks.bench --shapes=gpt2_124m --batch=16 --precisions=bfloat16   # on a GPU: both use it

Every contender lives in a process of its own, so that its peak memory is its own. In each round all of them work in
turn, so that what slows the machine down slows them alike; what is reported is the median over rounds of the ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contender import SHAPES, Contender, Precision, Shape
from llm_jax.core.errors import InputError, lookup

REFERENCE = "torch"  # what the others are divided by
TURN = 0.5  # seconds that a contender works before the next one does, at least
MATMULS = (2048, 4096, 8192)
LONG = 0.01  # seconds of a product that no longer one is needed for
DECODE = 64  # tokens
LEGEND = (
    "MFU: 6N + 12·L·D·T FLOPs per token (PaLM, appendix B; N without positions), as a share of the best product of "
    "two square matrices that any contender made at the start.\n"
    f"Time / {REFERENCE}: the median over rounds of the ratio; below 1 is faster.\n"
    "Peak memory: of the whole process on the host after training, libraries included."
)

Maker = Callable[[Shape, Precision], Contender]


@dataclasses.dataclass(frozen=True)
class Result:
    """One contender at one task.

    Attributes:
      task: "train", or "decode 8" for 8 sequences at once.
      seconds: of one step, or of `DECODE` tokens for each sequence; one per round.
      tokens: how many were handled in those seconds.
      mfu: None for decoding.
      memory: peak resident bytes; None for decoding.
    """

    shape: str
    precision: str
    contender: str
    task: str
    seconds: tuple[float, ...]
    tokens: int
    mfu: float | None
    memory: int | None

    @property
    def what(self) -> tuple[str, str, str]:
        """What other contenders' results compare with this one."""
        return self.shape, self.precision, self.task


# --------------------------------------------------------------------------------------------- a process per contender


class Remote:
    """A contender in another process. Closing it ends the process."""

    def __init__(self, make: Maker, shape: Shape, precision: Precision):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, shape, precision), daemon=True)
        self._process.start()
        other.close()
        self.platform: str = self._answer()

    def seconds(self, method: str, *arguments: int, times: int = 1) -> float:
        """How long one call took, as the mean of `times` calls in a row."""
        return self._ask(method, arguments, times)

    def memory(self) -> int:
        """The most bytes that were resident so far."""
        return self._ask("memory", (), 1)

    def close(self) -> None:
        self._connection.close()
        self._process.join()

    def _ask(self, *request: Any) -> Any:
        self._connection.send(request)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a contender's process died with status {self._process.exitcode}") from None
        if isinstance(answer, InputError):
            raise answer
        return answer


def _serve(connection: Connection, make: Maker, shape: Shape, precision: Precision) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # all contenders live on one GPU at once
    try:
        contender = make(shape, precision)
    except InputError as error:
        connection.send(error)
        return
    connection.send(contender.platform)
    while True:
        try:
            method, arguments, times = connection.recv()
        except EOFError:
            return
        if method == "memory":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            connection.send(peak if sys.platform == "darwin" else peak * 1024)
            continue
        begun = time.perf_counter()
        for _ in range(times):
            getattr(contender, method)(*arguments)
        connection.send((time.perf_counter() - begun) / times)


@contextmanager
def remotes(makers: Mapping[str, Maker], shape: Shape, precision: Precision) -> Iterator[dict[str, Remote]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(closing(Remote(make, shape, precision))) for name, make in makers.items()}


# ----------------------------------------------------------------------------------------------------------- measuring


def alternate(
    contenders: Mapping[str, Remote], rounds: int, method: str, *arguments: int, turn: float = TURN
) -> dict[str, tuple[float, ...]]:
    """Seconds of one call, per round, of every contender. Each warms up first; every other round goes backwards."""
    times = {}
    for name, remote in contenders.items():
        remote.seconds(method, *arguments)  # compiles
        times[name] = max(1, round(turn / remote.seconds(method, *arguments)))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: -1 if number % 2 else 1]:
            found[name].append(contenders[name].seconds(method, *arguments, times=times[name]))
    return {name: tuple(seconds) for name, seconds in found.items()}


def measure(
    makers: Mapping[str, Maker], name: str, shape: Shape, precision: Precision, rounds: int, turn: float = TURN
) -> tuple[float, list[Result]]:
    """The best FLOPs per second of a matrix product, and what every contender did at each task.

    Raises:
      InputError: one runs on a GPU, and another does not.
    """
    with remotes(makers, shape, precision) as contenders:
        found = {name: remote.platform for name, remote in contenders.items()}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{name} on the {platform}" for name, platform in found.items())
            raise InputError(f"{said}: install both for the GPU, or hide it with CUDA_VISIBLE_DEVICES= for both")
        ability = 0.0
        for size in MATMULS:
            products = alternate(contenders, 3, "matmul", size, turn=min(turn, 0.2))
            best = min(min(seconds) for seconds in products.values())
            ability = max(ability, 2 * size**3 / best)
            if best > LONG:
                break
        results = []
        for who, seconds in alternate(contenders, rounds, "train_step", turn=turn).items():
            mfu: float | None = shape.flops_per_token * shape.tokens / statistics.median(seconds) / ability
            mfu = mfu if mfu <= 1 else None  # above 1 it proves only that the products were timed beside other work
            memory = contenders[who].memory()
            results.append(Result(name, precision, who, "train", seconds, shape.tokens, mfu, memory))
        for batch in shape.decode:
            for who, seconds in alternate(contenders, rounds, "decode", batch, DECODE, turn=turn).items():
                results.append(Result(name, precision, who, f"decode {batch}", seconds, batch * DECODE, None, None))
        return ability, results


def ratio(result: Result, results: Sequence[Result]) -> float | None:
    """The median over rounds of a contender's time divided by the reference's; None if the reference is not there."""
    for other in results:
        if other.contender == REFERENCE and other.what == result.what:
            return statistics.median(a / b for a, b in zip(result.seconds, other.seconds, strict=True))
    return None


# ----------------------------------------------------------------------------------------------------------- reporting


def table(results: Sequence[Result]) -> Table:
    """The results of one shape in one precision."""
    first = results[0]
    titles = ("task", "by", "tokens/s", "ms", "MFU", "peak MiB", f"time / {REFERENCE}")
    shown = Table(*titles, title=f"{first.shape}, {first.precision}", title_justify="left")
    for column in shown.columns[2:]:
        column.justify = "right"
    for r in results:
        seconds, against = statistics.median(r.seconds), ratio(r, results)
        shown.add_row(
            r.task,
            r.contender,
            f"{r.tokens / seconds:,.0f}",
            f"{seconds * 1000:,.1f}",
            "" if r.mfu is None else f"{r.mfu:.0%}",
            "" if r.memory is None else f"{r.memory / 2**20:,.0f}",
            "" if against is None else f"{against:.2f}",
        )
    return shown


def bench(
    shapes: Sequence[str], precisions: Sequence[str], rounds: int, console: Console, batch: int | None = None
) -> list[Result]:
    """Measures every shape in every precision, saying what it found as it goes.

    Raises:
      InputError: there is no such shape, precision or batch, or a contender's framework is not installed.
    """
    for name, number in (("rounds", rounds), ("batch", batch)):
        if number is not None and number < 1:
            raise InputError(f"--{name} must be 1 or more, not {number}")
    chosen: list[tuple[str, Shape, Precision]] = [
        (name, lookup(SHAPES, name, "shape"), lookup(PRECISIONS, precision, "precision"))
        for name in shapes
        for precision in precisions
    ]
    results: list[Result] = []
    for name, shape, precision in chosen:
        shape = shape if batch is None else dataclasses.replace(shape, batch=batch)
        ability, new = measure(CONTENDERS, name, shape, precision, rounds)
        results += new
        console.print(table(new))
        console.print(f"{shape.parameters / 1e6:.1f}M parameters; a matrix product makes {ability / 1e9:.0f} GFLOP/s\n")
    console.print(LEGEND)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES), help="which, separated by commas (%(default)s)")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="which, separated by commas (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender has its turn (%(default)s)")
    parser.add_argument("--batch", type=int, help="sequences in a step of training (the shape's own)")
    given = parser.parse_args(arguments)
    try:
        bench(given.shapes.split(","), given.precisions.split(","), given.rounds, Console(), given.batch)
    except InputError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def torch_contender(shape: Shape, precision: Precision) -> Contender:
    """Raises:
    InputError: torch is not installed.
    """
    try:
        from benchmarks.torch_reference import TorchContender
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError("the benchmark compares with PyTorch, which is missing: pip install -e '.[test]'") from None
    return TorchContender(shape, precision)


def jax_contender(shape: Shape, precision: Precision) -> Contender:
    from benchmarks.jax_contender import JaxContender

    return JaxContender(shape, precision)


PRECISIONS: dict[str, Precision] = {"float32": "float32", "bfloat16": "bfloat16"}
CONTENDERS: dict[str, Maker] = dict(torch=torch_contender, llm_jax=jax_contender)

if __name__ == "__main__":
    sys.exit(main())
