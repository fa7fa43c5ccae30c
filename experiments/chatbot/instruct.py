"""Does a model that only knows texts learn to take its turn in a conversation?

    python -m llm_jax train chatbot/instruct --workdir=runs/chatbot/instruct

The second stage of `make chatbot`: from `chatbot/pretrain`, on conversations with their roles and on questions with
answers. What is learnt is what the assistant says.
"""

from experiments.chatbot.pretrain import HELD_OUT
from llm_jax.data.documents import Rendering
from llm_jax.data.packing import BestFit
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import ChatterBot, Conversations, Mixture
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
        init_from="runs/chatbot/pretrain",
        model=Inherited(),
        tokenizer=Kept(),
        data=Data(
            Mixture((Conversations(), ChatterBot()), (9.0, 1.0)),
            length=256,
            batch=8,
            packing=BestFit(),
            split=HELD_OUT,
            rendering=Rendering(learn="answers"),
        ),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=20)),
        layout=Layout(),
        precision=Precision(),
        steps=300,
        eval_every=100,
        save_every=100,
        report=(SampledConversations(),),
    )
