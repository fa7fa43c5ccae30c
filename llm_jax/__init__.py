"""llm_jax: from raw text to a chatbot, with every choice on the way an ablation.

import llm_jax
experiment = llm_jax.get("small_gpt").override({"steps": 100})
llm_jax.train(experiment, "runs/a")
lm = llm_jax.load("runs/a")  # or a Hugging Face folder, or a .gguf
lm.generate(["Hello"], max_tokens=32, temperature=0.0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_jax import text
    from llm_jax.experiment import Experiment, get
    from llm_jax.interop.export import export_model
    from llm_jax.interop.import_ import import_model, load
    from llm_jax.training.loop import train

__all__ = ["Experiment", "export_model", "get", "import_model", "load", "text", "train"]

_HOMES = dict(
    Experiment="experiment", get="experiment", train="training.loop", load="interop.import_",
    import_model="interop.import_", export_model="interop.export",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imported when first asked for: `import llm_jax` stays quick."""
    if name == "text":
        return importlib.import_module("llm_jax.text")
    if name not in _HOMES:
        raise AttributeError(f"llm_jax has no {name!r}: it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"llm_jax.{_HOMES[name]}"), name)
