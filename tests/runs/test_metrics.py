import json
import math
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.core.errors import InputError
from llm_jax.runs.metrics import MetricsLog, read


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "events").mkdir()
    return tmp_path / "metrics.jsonl", tmp_path / "events"


def write(paths, resumed, steps):
    with MetricsLog(paths[0], paths[1], resumed) as log:
        for step in steps:
            log.write(step, "train", {"loss": jnp.float32(1 / 3 + step), "skipped_steps": 0})
            if step % 2 == 0:
                log.write(step, "validation", {"loss": 0.1 * step, "learning_rate": np.float64(3e-4)})


def test_reads_back_what_was_written_exactly(paths):
    values = {"loss": 0.1 + 0.2, "tiny": 5e-324, "third": np.float32(1 / 3), "whole": np.int64(3), "flag": True}
    with MetricsLog(paths[0], paths[1], None) as log:
        log.write(jnp.int32(5), "train", values)
    assert read(paths[0]) == [{"step": 5, "split": "train"} | values]
    assert paths[0].read_bytes().count(b"\n") == 1


def test_what_is_not_finite_is_null(paths):
    with MetricsLog(paths[0], paths[1], None) as log:
        log.write(1, "train", {"loss": float("nan"), "gradient_norm": jnp.float32(np.inf)})
    assert json.loads(paths[0].read_text(), parse_constant=pytest.fail)["gradient_norm"] is None
    assert math.isnan(read(paths[0])[0]["loss"])


@pytest.mark.parametrize("torn", [b"", b'{"step": 8, "spl', b'{"step": 8}'])
def test_a_resumed_run_ends_with_the_same_file(paths, torn):
    write(paths, None, range(1, 11))
    whole = paths[0].read_bytes()
    write(paths, None, range(1, 8))
    with open(paths[0], "ab") as file:
        file.write(torn)
    assert [line["step"] for line in read(paths[0])][-1] == 7
    write(paths, 4, range(5, 11))
    assert paths[0].read_bytes() == whole


def test_begun_again_from_the_beginning_nothing_is_left(paths):
    write(paths, None, [0, 1])
    write(paths, None, [0])
    assert [line["step"] for line in read(paths[0])] == [0, 0]


def test_a_damaged_line_is_named(paths):
    write(paths, None, [1, 3])
    first, second = paths[0].read_bytes().splitlines(keepends=True)
    for damaged in (b"{\n", b"[]\n", b"{}\n", b"\xff\n"):
        paths[0].write_bytes(first + damaged + second)
        for use in (lambda: read(paths[0]), lambda: MetricsLog(paths[0], paths[1], 3)):
            with pytest.raises(InputError, match=r"metrics.jsonl, line 2 is damaged"):
                use()
    with pytest.raises(InputError, match="cannot read"):
        read(paths[0].parent / "none")


def test_tensorboard_gets_the_same_numbers_and_forgets_what_was_cut(paths):
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.record_writer import masked_crc32c

    write(paths, None, [1, 2])
    write(paths, 1, [2])
    files = sorted(paths[1].iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2
    events, data = [], files[1].read_bytes()
    while data:  # records: length, its checksum, the event, its checksum
        size = int.from_bytes(data[:8], "little")
        body, data = data[12 : 12 + size], data[16 + size :]
        assert masked_crc32c(body)
        events.append(Event.FromString(body))
    assert events[1].step == 2 and events[1].session_log.status == SessionLog.START
    scalars = {value.tag: value.simple_value for event in events for value in event.summary.value}
    assert scalars == {
        "loss/train": np.float32(1 / 3 + 2),
        "skipped_steps/train": 0,
        "loss/validation": np.float32(0.2),
        "learning_rate/validation": np.float32(3e-4),
    }


def test_a_full_disk_is_one_line(paths):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsLog(paths[0], paths[1], None) as log:
        log.write(1, "train", {"loss": 1.0})
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60, limits[1]))
            with pytest.raises(InputError, match=r"no space left on the disk: step 2 is not in .*metrics.jsonl; free"):
                log.write(2, "train", {"loss": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [line["step"] for line in read(paths[0])] == [1]
