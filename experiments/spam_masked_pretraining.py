"""What does an encoder learn of messages by guessing masked tokens (BERT), before it is told which are spam?

    python -m llm_jax train spam_masked_pretraining --workdir=runs/masked
    python -m llm_jax train spam_pretrained --set=init_from=runs/masked --workdir=runs/spam_masked

The encoder of `spam`, on its training messages without their classes.
"""

from experiments import spam
from llm_jax.data.noising import Masked
from llm_jax.data.packing import BestFit
from llm_jax.experiment import Experiment
from llm_jax.objectives.masked import MaskedTokens


def experiment() -> Experiment:
    return spam.experiment().override(
        {
            "model": spam.encoder(),
            "data.packing": BestFit("truncate"),
            "data.presentation": Masked(),
            "objective": MaskedTokens(),
            "optimizer.learning_rate": 2e-3,
            "steps": 1000,
            "eval_every": 500,
            "save_every": 500,
        }
    )
