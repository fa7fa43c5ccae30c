"""Rotary positions in a config.json: the older spelling (`rope_theta`, `rope_scaling`) and the newer one
(`rope_parameters`) are read; the older one is written, which every reader knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from llm_jax.core.errors import InputError, lookup
from llm_jax.core.parts import show
from llm_jax.interop.family import Config, need
from llm_jax.layers.positions import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Positions,
    Rope,
    RopeScaling,
    YarnScaling,
)

THETA = 10_000.0


def rope(config: Config, theta: float = THETA, partly: bool = False) -> Rope:
    """The positions of a model whose layers all have the same ones; `theta` where config.json names none.

    `partly` is whether the family turns as much of a head as partial_rotary_factor says, or (of most) all of it.

    Raises:
      InputError: as `read`.
    """
    parameters = config.get("rope_scaling") or config.get("rope_parameters") or {}
    partial = config.get("partial_rotary_factor")
    above = dict(
        rope_theta=config.get("rope_theta") or theta, partial_rotary_factor=1.0 if partial is None else partial
    )
    given = {name: value for name, value in above.items() if parameters.get(name) is None} | parameters
    return read(given, config, partly)


def read(parameters: Mapping[str, Any], config: Config, partly: bool = False) -> Rope:
    """The positions from their own settings in config.json.

    Raises:
      InputError: they are scaled in a way that we do not have, or turn a part of each head where the family does not.
    """
    share = parameters.get("partial_rotary_factor") or 1.0
    if share != 1.0 and not partly:
        raise InputError(f"config.json has partial_rotary_factor={share}, which is not covered in this family")
    if nested := [name for name, value in parameters.items() if isinstance(value, Mapping)]:
        raise InputError(f"config.json has rope_parameters for {nested[0]} alone, which is not covered in this family")
    name = parameters.get("rope_type") or parameters.get("type") or "default"
    scaling = lookup(SCALINGS, name, "rope_type")(parameters, config)
    return Rope(float(need(parameters, "rope_theta")), scaling, float(share))


def written(positions: Rope) -> dict[str, Any]:
    """The settings `rope_theta` and `rope_scaling` of config.json (and `partial_rotary_factor`, if it is not 1).

    Raises:
      InputError: config.json has no such scaling.
    """
    share = {} if positions.share == 1.0 else dict(partial_rotary_factor=positions.share)
    match positions.scaling:
        case None:
            scaling = None
        case LinearScaling(factor):
            scaling = dict(rope_type="linear", factor=factor)
        case Llama3Scaling(factor, low, high, original):
            scaling = dict(
                rope_type="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
                original_max_position_embeddings=original,
            )  # fmt: skip
        case YarnScaling(factor, original, fast, slow):
            scaling = dict(
                rope_type="yarn", factor=factor, original_max_position_embeddings=original, beta_fast=fast,
                beta_slow=slow,
            )  # fmt: skip
        case LongRopeScaling(factor, original, short):  # only these numbers are known: there are no longer texts
            scaling = dict(
                rope_type="longrope", factor=factor, original_max_position_embeddings=original,
                short_factor=list(short), long_factor=list(short),
            )  # fmt: skip
        case other:
            raise InputError(f"config.json has no rope_scaling for {show(other, whole=True)}")
    return dict(rope_theta=positions.theta, rope_scaling=scaling) | share


def _default(parameters: Config, config: Config) -> None:
    return None


def _linear(parameters: Config, config: Config) -> RopeScaling:
    return LinearScaling(float(need(parameters, "factor")))


def _llama3(parameters: Config, config: Config) -> RopeScaling:
    factor, low, high = (float(need(parameters, n)) for n in ("factor", "low_freq_factor", "high_freq_factor"))
    return Llama3Scaling(factor, low, high, _original(parameters, config))


def _yarn(parameters: Config, config: Config) -> RopeScaling:
    """Peng et al. 2023, with the attention factor of the paper."""
    original = _original(parameters, config)
    factor = float(parameters.get("factor") or need(config, "max_position_embeddings") / original)
    fast, slow = float(parameters.get("beta_fast") or 32), float(parameters.get("beta_slow") or 1)
    scaling = YarnScaling(factor, original, fast, slow)
    if not parameters.get("truncate", True):
        raise InputError("config.json has rope_scaling.truncate=false, which is not covered: YarnScaling rounds")
    given = parameters.get("attention_factor")
    if given is None and parameters.get("mscale") and parameters.get("mscale_all_dim"):
        given = f"of mscale={parameters['mscale']} and mscale_all_dim={parameters['mscale_all_dim']}"
    if given is not None and given != scaling.magnitude():
        expected = f"YarnScaling's is {scaling.magnitude():g} for factor={factor:g}"
        raise InputError(f"config.json has a rope_scaling.attention_factor {given}, which is not covered: {expected}")
    return scaling


def _original(parameters: Config, config: Config) -> int:
    """The context that the model was trained for, before it was stretched; a model's own setting goes first."""
    name = "original_max_position_embeddings"
    return config.get(name) or parameters.get(name) or need(config, "max_position_embeddings")


def _dynamic(parameters: Config, config: Config) -> RopeScaling:
    raise InputError(
        "config.json has rope_type='dynamic', whose waves depend on the length of the text at hand: take rope_scaling "
        "out of config.json to use the model up to max_position_embeddings, where it changes nothing"
    )


def _longrope(parameters: Config, config: Config) -> RopeScaling:
    """Ding et al. 2024, for texts up to the original context (`context`): longer ones have other waves."""
    original, short = _original(parameters, config), need(parameters, "short_factor")
    factor = float(parameters.get("factor") or need(config, "max_position_embeddings") / original)
    scaling, given = LongRopeScaling(factor, original, tuple(map(float, short))), parameters.get("attention_factor")
    if given is not None and not math.isclose(given, scaling.magnitude(), rel_tol=1e-5):
        expected = f"LongRopeScaling's is {scaling.magnitude():g} for factor={factor:g}"
        raise InputError(f"config.json has a rope_scaling.attention_factor {given}, which is not covered: {expected}")
    return scaling


def context(positions: Positions, config: Config) -> int:
    """How many tokens a model with these positions can hold in view."""
    most = need(config, "max_position_embeddings")
    scaling = positions.scaling if isinstance(positions, Rope) else None
    return min(most, scaling.original) if isinstance(scaling, LongRopeScaling) else most


SCALINGS: dict[str, Callable[[Config, Config], RopeScaling | None]] = dict(
    default=_default, linear=_linear, llama3=_llama3, yarn=_yarn, dynamic=_dynamic, longrope=_longrope, su=_longrope,
)  # fmt: skip
