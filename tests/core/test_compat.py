from types import SimpleNamespace
from typing import Any

import pytest

from llm_jax.core.compat import device_platform


@pytest.mark.parametrize(
    ("kind", "platform"),
    [("cpu", "cpu"), ("TPU v4", "tpu"), ("TPU v5 lite", "tpu"), ("TPU7x", "tpu"), ("NVIDIA H100 80GB HBM3", "gpu")],
)
def test_where_a_device_has_no_platform_its_kind_tells(kind, platform):
    device: Any = SimpleNamespace(device_kind=kind, num_cores=1)
    assert device_platform(device) == platform


def test_a_device_that_has_a_platform_is_believed():
    device: Any = SimpleNamespace(device_kind="TPU v5 lite", num_cores=1, platform="cuda")
    assert device_platform(device) == "cuda"
