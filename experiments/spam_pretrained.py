"""Does a model tell spam better when it has read messages before, and better as an encoder than as a generator?

    python -m llm_jax train spam_pretrained --set=init_from=runs/masked --workdir=runs/spam_masked

`init_from` is a run of `spam_masked_pretraining` or `spam_causal_pretraining`; all else is as in `spam`.
"""

from experiments import spam
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.text.kept import Kept


def experiment() -> Experiment:
    return spam.experiment().override({"model.backbone": Inherited(), "tokenizer": Kept()})
