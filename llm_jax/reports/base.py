"""What reports return, and running those of an experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part
from llm_jax.core.returned import unusable
from llm_jax.engine.trained import Finished


@dataclasses.dataclass
class Finding:
    """Lines for people, numbers by name, and figures (PNG) by the name of their file.

    `failed`: the report cannot be made, which is all that the line says.
    """

    lines: list[str]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    figures: dict[str, bytes] = dataclasses.field(default_factory=dict)
    failed: bool = False


class Report(Part):
    """`report(finished) -> Finding`."""

    def check(self, planned: Finished) -> None:
        """Checks that the report can be made of this run, as far as that is known before its first step.

        Args:
          planned: the run as it will be when it is finished, but for `params` and `frozen`, which are None.

        Raises:
          InputError: it cannot; the message names the setting to change.
        """

    def __call__(self, finished: Finished) -> Finding:
        """What it finds.

        Raises:
          InputError: it cannot be made. The other reports are made all the same.
        """
        raise NotImplementedError


def check_reports(planned: Finished) -> None:
    """Checks that every report of the experiment can be made, as far as is known before the first step.

    Raises:
      InputError: one cannot; the message says which.
    """
    for number, report in enumerate(planned.experiment.report):
        assert isinstance(report, Report)
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
        assert isinstance(report, Report)
        name = type(report).__name__
        try:
            finding: object = report(finished)
            if not isinstance(finding, Finding):
                raise unusable(f"the report {name}", finding, "a Finding of llm_jax.reports.text")
        except InputError as error:
            finding = Finding([f"the report {name} cannot be made: {' '.join(str(error).split())}"], failed=True)
        except Exception as fault:
            faults.append(fault)
            finding = Finding([f"the report {name} ended in {type(fault).__name__}: {fault}"], failed=True)
        yield finding
    if faults:
        raise faults[0]
