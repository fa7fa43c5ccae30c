"""How far a share that was counted, or a mean, may be from the true one."""

from __future__ import annotations

import math

import numpy as np

NORMAL_95 = 1.959964  # standard deviations either side of the mean that hold 95% of a normal distribution


def wilson(successes: float, count: float) -> tuple[float, float]:
    """The 95% interval of a share of which `successes` of `count` independent trials tell (Wilson 1927).

    A half of a success is a tie. It is never empty, and stays within 0 and 1, where the normal approximation does not.
    """
    share, z2 = successes / count, NORMAL_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = NORMAL_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def mean_error(value_N: np.ndarray, count: float | None = None) -> float | None:
    """Half the 95% interval of the mean of values, which tell as much as `count` independent ones (None: they are).

    None: one value alone has none.
    """
    if len(value_N) < 2:
        return None
    return NORMAL_95 * float(value_N.std(ddof=1)) / math.sqrt(len(value_N) if count is None else count)


def independent_pairs(value_P: np.ndarray, member_PO: np.ndarray) -> float:
    """How many independent pairs would tell the mean of these values as well (Aronow, Samii & Assenova 2015).

    Args:
      value_P: of each pair.
      member_PO: the two that it is of, by number. Values of pairs with a member in common are taken to depend on each
        other.

    Returns:
      As many as there are, where none has; fewer, where that makes the mean less certain.
    """
    error_P = value_P - value_P.mean()
    _, pair_P = np.unique(np.sort(member_PO, 1), axis=0, return_inverse=True)
    of_pairs = float((np.bincount(pair_P.reshape(-1), error_P) ** 2).sum())
    of_members = float((np.bincount(member_PO.reshape(-1), np.repeat(error_P, 2)) ** 2).sum())
    alone, together = float((error_P**2).sum()), of_members - of_pairs
    if not alone:  # nothing varies: what is certain is that no member tells anything twice
        return len(np.unique(member_PO)) / 2
    return len(value_P) * alone / max(alone, together)


def ties(difference_N: np.ndarray) -> float:
    """The share of differences that are 0."""
    return float((difference_N == 0).mean())
