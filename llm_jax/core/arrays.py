"""Names for the pytrees of arrays that rooms hand to each other."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

Batch = Mapping[str, jax.Array]  # by name, with letters: `tokens_BT`
HostBatch = dict[str, np.ndarray]  # the same in NumPy, before it is placed on devices
