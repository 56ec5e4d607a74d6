"""--ablate, --knockout, --steer, --patch: from the words typed to a tap that makes them true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.commands.files import sha256_of
from llmcli.commands.input import read_file
from llmcli.commands.loading import Opened
from llmcli.commands.options import Interventions
from llmcli.commands.say import say
from llmcli.errors import UsageError, shown, shown_path
from llmcli.trace import CHANGES

if TYPE_CHECKING:
    from llmcli.gpt.model import GPT
    from llmcli.gpt.tap import Patch, Tap
    from llmcli.inspection.plan import Plan, Wishes

MAX_REFERENCE_NBYTES = 64 << 20
MODERATE = 0.7  # of the stream's length: so much changes what a text is about and leaves it one


@dataclass(frozen=True)
class Changes:
    """What is to be changed in every forward pass of a run; false where it is nothing."""

    wishes: Wishes
    reference: tuple[tuple[int, ...], ...] = ()
    words: Mapping[str, Any] = field(default_factory=dict)  # as they were given, for JSON

    def __bool__(self) -> bool:
        return bool(self.wishes)

    @property
    def files(self) -> list[Path]:
        """Vectors that are read."""
        return [Path(steer.path) for steer in self.wishes.steers if steer.path is not None]

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file that is read, by its path."""
        reference = self.words.get("reference")
        paths = [*self.files, *([] if reference is None else [Path(reference)])]
        return {str(path): sha256_of(path) for path in paths}

    @property
    def lines(self) -> list[str]:
        """The changes as they were typed, in the order in which they apply."""
        return [f"{entry.option} {shown(entry.text, 4096)}" for entry in self.wishes.entries]

    @property
    def title(self) -> str:
        """The same on one line."""
        return "  ".join(self.lines)

    def plan(self, opened: Opened, ids: Sequence[int]) -> Plan:
        """What they mean for the prompt `ids`; told before torch is there."""
        from llmcli.inspection.plan import Prompt, plan

        prefix = list(opened.tokenizer.prefix_ids)
        prompt = Prompt(
            ids,
            lambda text: [*prefix, *opened.encode(text)],
            opened.token_bytes,
            len(prefix),
            self.reference,
        )
        return plan(self.wishes, prompt, opened.config)

    def check_for_many(self) -> None:
        """Raises UsageError where they are about one prompt, which --prompts does not have."""
        if places := self.wishes.of_places:
            fix = "--steer-prompt steers all" if places[0].option == "--steer" else "run them alone"
            raise places[0].wrong(0, "with --prompts there is no one prompt to name.", fix)
        if self.wishes.of_mean and not self.reference:
            entry = self.wishes.of_mean[0]
            raise entry.wrong(0, "with --prompts a mean needs --reference.", "or :zero")


def read_changes(opened: Opened, wanted: Interventions) -> Changes:
    """The entries of all options, held against the model. Raises UsageError with a caret."""
    from llmcli.inspection.plan import read

    given = {name: getattr(wanted, name) or [] for name in CHANGES}
    wishes = read(opened.config, **given, steer_prompt=wanted.steer_prompt)
    reference = wanted.reference
    if reference is not None and not wishes.of_mean:
        raise UsageError(
            "--reference is for means, and there are none.",
            "They are those of --ablate L3.H5:mean and of --steer with one text.",
        )
    words: dict[str, Any] = {name: list(entries) for name, entries in given.items() if entries}
    if words:
        words["steer_prompt"] = wanted.steer_prompt
        words["reference"] = None if reference is None else str(reference)
    return Changes(wishes, () if reference is None else _reference(opened, reference), words)


def patches_of(plan: Plan, model: GPT, ids: Sequence[int], quiet: bool) -> dict[str, Patch]:
    """What makes `plan` come true in runs that begin with `ids`."""
    if not plan:
        return {}
    from llmcli.inspection.intervention import patches, stream_norms, vectors_of

    made = vectors_of(model, plan)
    if made and not quiet:
        layers = [vector.layer for vector in plan.vectors]
        for layer, length in dict(zip(layers, stream_norms(model, plan, ids), strict=True)).items():
            own = [added for at, added in zip(layers, made, strict=True) if at == layer]
            _tell_drowned(layer, float(sum(own[1:], own[0]).norm()), length)
    return patches(model, plan, ids, made)


def _tell_drowned(layer: int, norm: float, length: float) -> None:
    """Say so where what is added is longer than the stream there."""
    if norm > length:
        share = float(f"{MODERATE * length / norm:.1g}")
        say(
            f"--steer: what is added after layer {layer} has the length {norm:.0f} and drowns a "
            f"stream of {length:.0f}: the text may be noise. {share:g} of the strength is gentler.",
        )


def tap_for(patch: Mapping[str, Patch], model: GPT, record: Sequence[str] = ()) -> Tap:
    """The tap with these patches that records these points; a fast one where there are none."""
    from llmcli.gpt.model import NO_TAP
    from llmcli.gpt.tap import Probe

    n_layer = model.config.n_layer
    return Probe(n_layer, record=record, patch=patch) if patch or record else NO_TAP


def _reference(opened: Opened, path: Path) -> tuple[tuple[int, ...], ...]:
    """The ids of a text, cut into pieces that the context holds, each begun as a prompt is."""
    text = read_file(path, MAX_REFERENCE_NBYTES, "Name a text: --reference story.txt")
    ids = opened.encode(text)
    if not ids:
        raise UsageError(
            f"{shown_path(path)} is empty.", "--reference takes a text to average over."
        )
    prefix = tuple(opened.tokenizer.prefix_ids)
    room = opened.config.n_ctx - len(prefix)
    return tuple((*prefix, *ids[i : i + room]) for i in range(0, len(ids), room))
