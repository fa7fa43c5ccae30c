"""Is a model that has read messages before better at telling spam when only 200 of them are labelled?

    python -m llm_jax train spam_few_labels --set=init_from=runs/masked --workdir=runs/few_masked

`spam_pretrained` with few of the training messages; those held out are the same. What has learnt nothing before begins
from a run of `spam_masked_pretraining` with `--set=steps=1 --set=optimizer.learning_rate=1e-9`, for its tokenizer.
"""

from experiments import spam_pretrained
from llm_jax.data.split import ByHash, Few
from llm_jax.experiment import Experiment


def experiment() -> Experiment:
    return spam_pretrained.experiment().override({"data.split": Few(200, ByHash(0.2))})
