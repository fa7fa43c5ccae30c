"""What layers say on the side, to the objective: a router's losses, beside the output that the next layer gets.

A layer says named arrays; who calls `apply(..., mutable=[ASIDE])` hears their sums over all layers. Whoever applies
layers functionally hears them and says them again. Where nobody listens, it costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

ASIDE = "aside"


def say(module: nn.Module, said: Mapping[str, jax.Array]) -> None:
    """Says `said` in the name of `module`; not while it is initialised."""
    if not module.is_initializing():
        for name, value in said.items():
            module.sow(ASIDE, name, value)


def heard(variables: Any) -> dict[str, jax.Array]:
    """What was said while `variables` were collected, summed by name; {} if nothing was."""
    total: dict[str, jax.Array] = {}
    for path, value in jax.tree_util.tree_leaves_with_path(variables.get(ASIDE, {})):
        name = path[-2].key  # then comes the number of the saying
        total[name] = total[name] + value if name in total else value
    return total
