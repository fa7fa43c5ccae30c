"""What the oldest supported packages lack (Colab's: jax 0.7.2), as the newest have it."""

from __future__ import annotations

from jax.sharding import AbstractDevice


def device_platform(device: AbstractDevice) -> str:
    """The platform of a mesh's device, which need not be here: "cpu", "tpu", or "cuda", "rocm" or "gpu".

    jax 0.7.2 has no `AbstractDevice.platform`; there the device's kind tells: "cpu", "TPU v5 lite", "NVIDIA H100 ...".
    """
    if hasattr(device, "platform"):
        return device.platform
    kind = device.device_kind.lower()
    return next((platform for platform in ("cpu", "tpu") if kind.startswith(platform)), "gpu")
