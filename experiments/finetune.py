"""Does an imported model learn to talk like these conversations?

python -m llm_jax import FOLDER --workdir=runs/smollm2
python -m llm_jax train finetune --set=init_from=runs/smollm2 --workdir=runs/tuned
"""

from llm_jax.data.documents import Rendering
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Conversations
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.reports.text import SampledConversations
from llm_jax.text.kept import Kept


def experiment() -> Experiment:
    return Experiment(
        model=Inherited(),
        tokenizer=Kept(),
        data=Data(Conversations(), length=256, batch=8, rendering=Rendering(learn="answers"), evaluation_batches=20),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=5e-5, schedule=Cosine(warmup=20)),
        layout=Layout(),
        precision=Precision(),
        steps=200,
        eval_every=50,
        save_every=100,
        report=(SampledConversations(),),
    )
