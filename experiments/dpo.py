"""Do preferences alone teach care to a model that imitates careless people, on lists that it has not seen?

    python -m llm_jax train dpo_base --workdir=runs/dpo_base
    python -m llm_jax train dpo --set=init_from=runs/dpo_base --workdir=runs/dpo

Each pair is a right and a careless reply to one prompt. `--set="objective=Ipo()"` and the others of
`llm_jax/objectives/preferences.py` learn from the same pairs.
"""

import dataclasses
from collections.abc import Iterator

from experiments import dpo_base
from llm_jax.core.parts import Size
from llm_jax.data.documents import Preference
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.sources import Source
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.objectives.preferences import Dpo
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.schedules import Constant
from llm_jax.text.chat import Message
from llm_jax.text.kept import Kept


@dataclasses.dataclass(frozen=True)
class SortPreferences(Source):
    """`count` lists sorted rightly and carelessly; of the lists held out, the same as the base's."""

    count: Size = 2_000
    held_out: Size = 500

    def documents(self) -> Iterator[Preference]:
        return self._pairs(self.count, held_out=False)

    def validation(self) -> Iterator[Preference]:
        return self._pairs(self.held_out, held_out=True)

    def _pairs(self, count: int, held_out: bool) -> Iterator[Preference]:
        for text, right, wrong in dpo_base.lists(count, held_out):
            yield Preference((Message("user", text),), right, wrong)


def experiment() -> Experiment:
    return dpo_base.experiment().override(
        {
            "model": Inherited(),
            "tokenizer": Kept(),
            "data": Data(SortPreferences(), length=18, batch=32, packing=One(), presentation=Pairs()),
            "objective": Dpo(beta=1.0),
            "optimizer": AdamW(learning_rate=3e-5, schedule=Constant(), weight_decay=0.0),
            "steps": 40,
            "log_every": 10,
            "eval_every": 20,
            "save_every": 20,
        }
    )
