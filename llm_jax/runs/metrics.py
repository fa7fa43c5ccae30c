"""What a run measured: metrics.jsonl, one JSON object a line, and the same numbers as TensorBoard events.

A line is `{"step": ..., "split": "train", "loss": ..., ...}`. Floats are written so that they read back exactly.
JSON has no NaN or infinity: both are written `null`, and `read` gives NaN for it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.core.files import parse_json, write_atomically
from llm_jax.runs.disk import append_lines, space_for


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last one that a kill cut short.

    Raises:
      InputError: the file cannot be read, or another line than the last is damaged.
    """
    try:
        lines = _whole_lines(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    found = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in found]


def _whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        raise InputError(f"{path}, line {number} is damaged: mend or delete that line")
    return found


class MetricsLog:
    """Appends to metrics.jsonl and to TensorBoard's events. A context manager.

    A line is one unbuffered write, so a kill leaves at most one torn line, the last. All lines of a step must be
    written before its checkpoint is saved: a run resumed from there writes only the later ones again.
    """

    def __init__(self, path: Path, events: Path, resumed: int | None):
        """
        Args:
          path: metrics.jsonl.
          events: TensorBoard's folder.
          resumed: the step of the checkpoint gone on from: later lines are cut off. None: from the beginning, all are.

        Raises:
          InputError: the file is damaged, or the disk is full.
        """
        self.path = path
        self._resumed = resumed
        self._events_folder = events
        self._events: Any = None
        with space_for(f"{path} cannot be written"):
            cut(path, resumed)
            path.touch()

    def write(self, step: int, split: str, metrics: Mapping[str, Any]) -> None:
        """Appends a line. Numbers may be Python's, NumPy's or JAX's; a flag and a text stay what they are.

        Raises:
          InputError: the disk is full.
        """
        values = {name: plain(value) for name, value in metrics.items()}
        line = json.dumps({"step": int(step), "split": split} | values, allow_nan=False).encode() + b"\n"
        with space_for(f"step {step} is not in {self.path}"):
            append_lines(self.path, line)
            self._write_events(int(step), {f"{n}/{split}": v for n, v in values.items() if isinstance(v, (int, float))})

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_events(self, step: int, values: Mapping[str, float]) -> None:
        """Written at once rather than by SummaryWriter's thread, where the error of a full disk would be lost."""
        from tensorboardX.event_file_writer import EventsWriter  # imported late: slow, for it imports torch if it can
        from tensorboardX.proto import event_pb2, summary_pb2

        event: Any = event_pb2  # generated code, without types
        summary: Any = summary_pb2
        if self._events is None:
            # The name has to be new, or the events of the session before would be overwritten.
            self._events = EventsWriter(str(self._events_folder / "events"), f".{os.getpid()}.{time.time_ns()}")
            first = 0 if self._resumed is None else self._resumed + 1
            # TensorBoard then forgets what an earlier session wrote from step `first` on.
            start = event.SessionLog(status=event.SessionLog.START)
            self._events.write_event(event.Event(wall_time=time.time(), step=first, session_log=start))
        scalars = [summary.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._events.write_event(event.Event(wall_time=time.time(), step=step, summary=summary.Summary(value=scalars)))
        self._events.flush()


def plain(value: Any) -> int | float | bool | str | None:
    """`value` as JSON can hold it."""
    if isinstance(value, (bool, int, str)):
        return value
    number = value.item() if hasattr(value, "item") else value
    return number if not isinstance(number, float) or math.isfinite(number) else None


def append(path: Path, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
    """Adds a line for each of what was said at this step.

    Raises:
      InputError: the disk is full.
    """
    lines = [json.dumps({"step": step} | dict(sample), ensure_ascii=False, allow_nan=False) for sample in samples]
    with space_for(f"step {step} is not in {path}"):
        append_lines(path, "".join(f"{line}\n" for line in lines).encode())


def cut(path: Path, resumed: int | None) -> None:
    """Keeps the lines up to step `resumed`; the rest of them, and a torn last one, are dropped."""
    if not path.exists():
        return
    kept = (
        []
        if resumed is None
        else [line for i, line in enumerate(_whole_lines(path), 1) if _parse(path, i, line)["step"] <= resumed]
    )
    write_atomically(path, b"".join(kept))
