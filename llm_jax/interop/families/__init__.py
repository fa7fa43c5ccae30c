"""Families of published checkpoints: one file for each, named by their `model_type` in config.json."""

from llm_jax.interop.families.llama import LLAMA
from llm_jax.interop.family import Family

FAMILIES: dict[str, Family] = dict(llama=LLAMA)
