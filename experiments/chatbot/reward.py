"""Can the chatbot tell which of two conversations people enjoyed more?

    python -m llm_jax train chatbot/reward --workdir=runs/chatbot/reward

The third stage of `make chatbot`: a reward model of the ratings that came with the conversations. They rated longer
ones better, so those compared are of one length. The model sums up the words, which begin as those of
`chatbot/instruct`: from so few ratings a transformer, that one with a head, learns by heart and judges no better than
length does (docs/research_log.md). Tastes differ: look at how many held-out pairs it judges right, before you trust it.
"""

from experiments import reward_ratings
from llm_jax.core.dims import Fill
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.sources import RatedConversations
from llm_jax.experiment import Experiment
from llm_jax.layers.embedding import Embed
from llm_jax.models.bag_of_tokens import BagOfTokens
from llm_jax.models.heads import Scorer
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.schedules import Cosine
from llm_jax.text.kept import Kept


def experiment() -> Experiment:
    return reward_ratings.experiment().override(
        {
            "init_from": "runs/chatbot/instruct",
            "model": Scorer(BagOfTokens(Embed(width=192)), head_init=Fill(0.0)),
            "tokenizer": Kept(),
            "data": Data(
                RatedConversations(rounds=4, length_matched=True),
                1024,
                32,
                packing=One("truncate"),
                presentation=Pairs(),
            ),
            "optimizer": AdamW(learning_rate=1e-2, schedule=Cosine(warmup=20)),
            "steps": 300,
            "eval_every": 100,
            "save_every": 100,
        }
    )
