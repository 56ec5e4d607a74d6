"""What was made of a request: views, and what is said of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmcli.render.subject import NO_SUBJECT, Subject

if TYPE_CHECKING:
    from llmcli.inspection.recorded import Held
    from llmcli.inspection.run import Run
    from llmcli.inspection.values import View


@dataclass(frozen=True)
class Made:
    """The views, what JSON says of all of them; with --baseline the untouched run's, and how far
    each pair is apart."""

    views: list[View]
    about: dict[str, Any]
    untouched: list[View] = field(default_factory=list)
    differences: list[View] = field(default_factory=list)
    held: Held | None = None  # of a recorded step: how it compares with what was recorded
    subject: Subject = NO_SUBJECT

    @property
    def all(self) -> list[View]:
        """In the order in which they are shown."""
        return [*self.untouched, *self.views, *self.differences]


def noted(view: View, run: Run) -> View:
    """The view, saying so where it was not computed in fp32."""
    storage = run.model.storage
    if storage == "float32":
        return view
    how = "computed" if str(run.model.dtype) == f"torch.{storage}" else "weights are kept"
    note = f"approximate: {how} in {storage}, not in float32."
    return replace(view, notes=(*view.notes, note))
