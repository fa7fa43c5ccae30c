"""Checking and running the reports of an experiment."""

from __future__ import annotations

from collections.abc import Iterator

from llm_jax.core.errors import InputError
from llm_jax.core.returned import unusable
from llm_jax.engine.trained import Finished
from llm_jax.experiment import Finding


def check_reports(planned: Finished) -> None:
    """Checks that every report of the experiment can be made, as far as is known before the first step.

    Raises:
      InputError: one cannot; the message says which.
    """
    for number, report in enumerate(planned.experiment.report):
        try:
            report.check(planned)
        except InputError as error:
            raise InputError(f"report.{number}, {type(report).__name__}: {error}") from None


def findings(finished: Finished) -> Iterator[Finding]:
    """Of each part of the experiment's report in turn; of one that cannot be made, that it cannot and why.

    What is raised besides InputError is a fault of the code: it is raised when the other reports are made.
    """
    faults: list[Exception] = []
    for report in finished.experiment.report:
        name = type(report).__name__
        try:
            finding: object = report(finished)
            if not isinstance(finding, Finding):
                raise unusable(f"the report {name}", finding, "a Finding of llm_jax.experiment")
        except InputError as error:
            finding = Finding([f"the report {name} cannot be made: {' '.join(str(error).split())}"], failed=True)
        except Exception as fault:
            faults.append(fault)
            finding = Finding([f"the report {name} ended in {type(fault).__name__}: {fault}"], failed=True)
        yield finding
    if faults:
        raise faults[0]
