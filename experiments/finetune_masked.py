"""Does an imported encoder learn to guess the masked words of the King James Bible?

python -m llm_jax import FOLDER --workdir=runs/bert
python -m llm_jax train finetune_masked --set=init_from=runs/bert --workdir=runs/tuned
"""

from llm_jax.data.noising import Masked
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import KingJames
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.objectives.masked import MaskedTokens
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.text.kept import Kept


def experiment() -> Experiment:
    return Experiment(
        model=Inherited(),
        tokenizer=Kept(),
        data=Data(KingJames(), length=256, batch=8, presentation=Masked(whole_words=True), evaluation_batches=20),
        objective=MaskedTokens(),
        optimizer=AdamW(learning_rate=5e-5, schedule=Cosine(warmup=20)),
        layout=Layout(),
        precision=Precision(),
        steps=200,
        eval_every=50,
        save_every=100,
    )
