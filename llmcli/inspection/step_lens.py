"""The logit lens of each step while a run goes on, for `generate --trace-lens`."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.gpt.model import GPT
from llmcli.gpt.tap import Probe
from llmcli.inspection.lens import Best, Final, lens_logits, stream_points
from llmcli.inspection.run import rank_of
from llmcli.trace_lines import LensLayer

POINTS = ("0.resid_pre", "*.resid_post")


class StepLens:
    """What every layer would have said at the newest token of each row; `probe` records POINTS."""

    def __init__(self, model: GPT, probe: Probe) -> None:
        self.model, self.probe = model, probe
        self.points = stream_points(range(model.config.n_layer)).values()
        self.index, self.place = -1, 0
        self.logits = torch.empty(0)  # (L + 1, B, V) of the step `index`

    @torch.inference_mode()
    def of(self, index: int, id: int) -> tuple[LensLayer, ...]:
        """The layers at step `index`, asked for once per row, in the order of the batch."""
        self.place += 1
        if index != self.index:
            self.index, self.place = index, 0
            x = torch.stack([self.probe.values[point][:, -1] for point in self.points])
            self.logits = lens_logits(self.model, x)  # x: (L + 1, B, C)
        return layers(self.logits[:, self.place], id)


def layers(logits: Tensor, id: int) -> tuple[LensLayer, ...]:
    """A row for each layer's `logits` (L + 1, V), the last of which are the model's own."""
    best = Best.of(logits, Final.of(logits[-1:]))
    ranks = rank_of(logits, torch.full((len(logits),), id, device=logits.device))
    facts = (best.ids, best.probs, best.kl_bits, ranks)
    return tuple(LensLayer(*row) for row in zip(*(f.tolist() for f in facts), strict=True))
