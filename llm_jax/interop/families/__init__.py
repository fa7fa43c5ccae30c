"""Families of published checkpoints, by their `model_type` in config.json.

A new one is one file and one line here. An export takes the first that has every part of the model.
"""

from llm_jax.interop.families.bart import BART, MARIAN
from llm_jax.interop.families.bert import BERT, ROBERTA
from llm_jax.interop.families.gemma import GEMMA, GEMMA2, GEMMA3
from llm_jax.interop.families.gpt2 import GPT2
from llm_jax.interop.families.llama import LLAMA
from llm_jax.interop.families.mistral import MISTRAL
from llm_jax.interop.families.olmo2 import OLMO2
from llm_jax.interop.families.phi3 import PHI3
from llm_jax.interop.families.qwen import QWEN2, QWEN3
from llm_jax.interop.families.qwen_moe import QWEN3_MOE
from llm_jax.interop.families.t5 import MT5, T5
from llm_jax.interop.families.vit import VIT
from llm_jax.interop.family import Family

FAMILIES: dict[str, Family] = dict(
    llama=LLAMA, mistral=MISTRAL, qwen2=QWEN2, qwen3=QWEN3, qwen3_moe=QWEN3_MOE, phi3=PHI3, gemma=GEMMA,
    gemma2=GEMMA2, gemma3_text=GEMMA3, olmo2=OLMO2, gpt2=GPT2, bert=BERT, roberta=ROBERTA, bart=BART,
    marian=MARIAN, t5=T5, mt5=MT5, vit=VIT,
)  # fmt: skip
