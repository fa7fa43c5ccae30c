"""Can the chatbot tell which of two conversations people enjoyed more?

    python -m llm_jax train chatbot/reward --workdir=runs/chatbot/reward

The third stage of `make chatbot`: from `chatbot/instruct`, a reward model of the ratings that came with the
conversations. Tastes differ: look at how many held-out pairs it judges right, before you trust it.
"""

from experiments import reward_ratings
from llm_jax.core.alphabet import Fill
from llm_jax.experiment import Experiment
from llm_jax.models.heads import Scorer
from llm_jax.models.inherited import Inherited
from llm_jax.text.kept import Kept
from llm_jax.training.optimizers import AdamW, Cosine


def experiment() -> Experiment:
    return reward_ratings.experiment().override(
        {
            "init_from": "runs/chatbot/instruct",
            "model": Scorer(Inherited(), head_init=Fill(0.0)),
            "tokenizer": Kept(),
            "optimizer": AdamW(learning_rate=2e-4, schedule=Cosine(warmup=20)),
            "steps": 150,
            "eval_every": 50,
            "save_every": 50,
        }
    )
