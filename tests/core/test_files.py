"""Files that are whole or absent, and hashes."""

from __future__ import annotations

import os

import pytest

from llm_jax.core import files
from llm_jax.core.errors import InputError


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "one")
    files.write_atomically(path, b"two\xff")
    assert path.read_bytes() == b"two\xff" and os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_atomically(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_digest_counts_the_boundaries():
    assert files.digest("ab", "c") != files.digest("a", "bc") and files.digest("a") == files.digest(b"a")
    assert len(files.digest()) == 64


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"LLM_JAX_CACHE": "{}/a"}, "a/x/y"),
        ({"XDG_CACHE_HOME": "{}/b"}, "b/llm_jax/x/y"),
        ({"HOME": "{}/c"}, "c/.cache/llm_jax/x/y"),
    ],
)
def test_the_cache_is_where_the_user_says(tmp_path, monkeypatch, variables, wanted):
    for name in ("LLM_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert files.cache_folder("x", "y") == tmp_path / wanted and (tmp_path / wanted).is_dir()


def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_JAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot make the cache folder: .*: set LLM_JAX_CACHE to a folder"):
        files.cache_folder("x")
    long = tmp_path / ("x" * 300)
    with pytest.raises(InputError, match=r"cannot read .*: File name too long"), files.reading(long):
        long.exists()


def test_a_digest_takes_half_a_surrogate_pair():
    assert files.digest("\ud800") != files.digest("\ud801")


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_that_the_umask_asks_for(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        files.write_atomically(tmp_path / "a", "x")
        (tmp_path / "b").touch(0o600)
        files.open_to_others(tmp_path / "b")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in sorted(tmp_path.iterdir())] == [mode, mode]


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.user_path("~/runs/a") == tmp_path / "runs" / "a" and str(files.user_path("runs/~a")) == "runs/~a"
    with pytest.raises(InputError, match="cannot find the folder ~nobody-of-this-name/x"):
        files.user_path("~nobody-of-this-name/x")


def test_json_that_is_nested_too_deeply_is_no_json(tmp_path):
    (tmp_path / "deep.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(InputError, match=r"deep.json is damaged"):
        files.read_json(tmp_path / "deep.json")
    with pytest.raises(ValueError, match="nested too deeply"):
        files.parse_json("[" * 100_000 + "]" * 100_000)
