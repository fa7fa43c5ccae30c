"""Does reinforcement from human ratings make replies that the reward model, and people, like better?

    python -m llm_jax train chatbot/align --workdir=runs/chatbot/align

The last stage of `make chatbot`: from `chatbot/instruct`, by group-relative policy optimisation with the score of
`chatbot/reward`. That has not learnt what a reply is worth that was cut off, so such a reply counts -3 instead: scores
are log-odds that began at 0, and of a reply of 0 and one of -3 the better is the first to 95 people of 100. A reward
that rises while the divergence from the beginning does too may be a reward that is gamed: the report shows replies of
before and after side by side.
"""

import dataclasses
from collections.abc import Iterable, Iterator

from experiments.chatbot.pretrain import HELD_OUT
from llm_jax.core.parts import Size
from llm_jax.data.documents import Conversation, Document, Rendering
from llm_jax.data.sources import Conversations, Source
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.models.pretrained import Pretrained
from llm_jax.objectives.policy import Grpo
from llm_jax.objectives.rewards import ModelReward
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout
from llm_jax.reports.preferences import Rewarded
from llm_jax.rl.rollouts import Rollouts
from llm_jax.text.kept import Kept

JUDGE = ModelReward(Pretrained("runs/chatbot/reward"))


@dataclasses.dataclass(frozen=True)
class Openings(Source):
    """The first `turns` messages of each conversation, of which the assistant's last is to be written anew.

    The conversations held out are those that no earlier stage has trained on.
    """

    turns: Size = 2

    def documents(self) -> Iterator[Conversation]:
        return self._cut(HELD_OUT(list(Conversations().documents()))[0])

    def validation(self) -> Iterator[Conversation]:
        return self._cut(HELD_OUT(list(Conversations().documents()))[1])

    def _cut(self, documents: Iterable[Document]) -> Iterator[Conversation]:
        for document in documents:
            if isinstance(document, Conversation) and len(document.messages) >= self.turns:
                yield Conversation(document.messages[: self.turns])


def experiment() -> Experiment:
    return Experiment(
        init_from="runs/chatbot/instruct",
        model=Inherited(),
        tokenizer=Kept(),
        data=Rollouts(
            Openings(), length=112, batch=64, group=8, max_tokens=32, rewards=(JUDGE,),
            rendering=Rendering(learn="answers"), evaluation_batches=1, unended=-3.0,
        ),
        objective=Grpo(kl=0.1),
        optimizer=AdamW(learning_rate=5e-5, schedule=Constant(warmup=5), weight_decay=0.0),
        layout=Layout(),
        precision=Precision(),
        steps=60,
        eval_every=20,
        save_every=20,
        report=(Rewarded(JUDGE, limit=300, max_tokens=32),),
    )  # fmt: skip
