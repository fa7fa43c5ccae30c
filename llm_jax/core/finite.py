"""Numbers that are no numbers: found where parameters are read, and where a model's answer would hide them."""

from __future__ import annotations

import numpy as np

CAUSE = "the model's parameters hold NaN or infinity, or its numbers overflow in the dtype that it computes in"


def is_finite(x: np.ndarray) -> bool:
    """Whether no element is NaN or infinite. Nothing of its size is allocated."""
    with np.errstate(invalid="ignore"):
        return not x.size or bool(np.isfinite(x.min()) and np.isfinite(x.max()))  # either is NaN if an element is
