"""Does an imported model answer instructions better when small adapters alone are trained?

    python -m llm_jax import FOLDER --workdir=runs/smollm2
    python -m llm_jax train finetune_lora --set=init_from=runs/smollm2 --workdir=runs/lora

With `--set=tuning.base="Nf4()"` the frozen weights take 4 bits each (QLoRA), with `--set=tuning="Dora(16)"` adapters
are those of DoRA.
"""

from llm_jax.data.documents import Rendering
from llm_jax.data.packing import BestFit
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Instructions
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.optim.trainable import Lora
from llm_jax.parallel.layout import Layout
from llm_jax.reports.text import SampledConversations
from llm_jax.text.kept import Kept


def experiment() -> Experiment:
    return Experiment(
        model=Inherited(),
        tokenizer=Kept(),
        data=Data(
            Instructions(), length=256, batch=4, packing=BestFit(), rendering=Rendering(learn="answers"),
            evaluation_batches=5,
        ),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=5e-4, schedule=Cosine(warmup=5), weight_decay=0.0),
        layout=Layout(),
        precision=Precision(),
        tuning=Lora(16, 32.0),
        steps=200,
        eval_every=50,
        save_every=100,
        report=(SampledConversations(),),
    )  # fmt: skip
