import os
import resource

import pytest

from llm_jax.core.errors import InputError
from llm_jax.runs.disk import append_lines, space_for
from llm_jax.runs.lock import only_writer
from llm_jax.runs.metrics import append


@pytest.mark.parametrize("torn", [b"", b'{"a', b"1\n2\n{"])
def test_a_torn_last_line_is_cut_off_by_the_next(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(torn)
    append_lines(path, b"3\n4\n")
    assert path.read_bytes() == torn[: torn.rfind(b"\n") + 1] + b"3\n4\n"


def test_lines_that_do_not_fit_leave_none(tmp_path):
    path, limits = tmp_path / "lines.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    append_lines(path, b"1234567\n")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        with (
            pytest.raises(InputError, match=r"^no space left on the disk: the lines; free some"),
            space_for("the lines"),
        ):
            append_lines(path, b"1234567\n" * 2)
        with pytest.raises(InputError, match=r"^no space left on the disk: step 2 is not in .*lines\.jsonl; free some"):
            append(path, 2, [{"prompt": "a"}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"1234567\n"


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_the_lock_has_the_permissions_that_the_umask_asks_for(tmp_path, mask):
    before = os.umask(mask)
    try:
        with only_writer(tmp_path):
            assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o666 & ~mask
    finally:
        os.umask(before)
