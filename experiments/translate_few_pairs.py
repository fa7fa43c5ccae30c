"""Does a translator need fewer translations when it has restored texts in both languages before?

    python -m llm_jax train translate_few_pairs --set=init_from=runs/denoised --workdir=runs/few_pairs

`translate_transformer` with 1,000 of its pairs; those held out are the same. `init_from` is a run of `denoise_verses`,
or for its tokenizer alone one with `--set=steps=1 --set=optimizer.learning_rate=1e-9`.
"""

from experiments import translate_transformer
from llm_jax.data.split import ByHash, Few
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.text.kept import Kept


def experiment() -> Experiment:
    return translate_transformer.experiment().override(
        {"model": Inherited(), "tokenizer": Kept(), "data.split": Few(1000, ByHash(0.02)), "steps": 300}
    )
