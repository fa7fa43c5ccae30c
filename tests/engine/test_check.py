"""An experiment whose fields hold parts of the wrong family."""

import pytest

from llm_jax import experiment as experiments
from llm_jax.core.errors import InputError
from llm_jax.core.parts import replace
from llm_jax.layers.attention import Attention
from llm_jax.optim.optimizers import AdamW


def test_every_part_of_an_experiment_has_its_family():
    made = experiments.get("small_gpt")
    fields = ("model", "tokenizer", "data", "objective", "optimizer", "layout", "precision", "tuning", "report")
    for name in fields:
        wrong = {"optimizer": Attention(1), "report": (AdamW(),)}.get(name, AdamW())
        with pytest.raises(InputError, match=rf"^{name}(\.0)? must be an? ") as refused:
            replace(made, **{name: wrong})
        assert "\n" not in str(refused.value)
