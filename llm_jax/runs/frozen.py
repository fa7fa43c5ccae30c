"""What a run reads and does not train (a reference, a teacher, the base of adapters): kept once, beside checkpoints."""

from __future__ import annotations

from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.runs.checkpoints import Checkpoints
from llm_jax.runs.folder import Run


def keep(run: Run, frozen: Any) -> None:
    """Writes it, sealed as checkpoints are, before the first step. None: there is nothing to keep."""
    if frozen is not None:
        with _folder(run) as folder:
            folder.save(0, {"frozen": frozen}, data={}, metrics={})


def kept(run: Run, template: Any) -> Any:
    """What `keep` wrote, laid out as `template` says.

    Raises:
      InputError: it is damaged, or holds other arrays than `template`.
    """
    if template is None:
        return None
    with _folder(run) as folder:
        found = folder.restore({"frozen": template})
    if found is None:
        raise InputError(f"{run.frozen} is missing, which the checkpoints of this run need: start in another --workdir")
    return found.state["frozen"]


def _folder(run: Run) -> Checkpoints:
    return Checkpoints(run.frozen, run.manifest)
