"""From what was asked to views: the model opened, the words resolved, torch last of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.commands.inspect_options import OneView, Where
from llmcli.commands.inspect_steer import sweep_of, vector_from_examples
from llmcli.commands.made import Made, noted
from llmcli.commands.options import Compute, Drawing, DType, Interventions
from llmcli.commands.say import say
from llmcli.errors import UsageError
from llmcli.render.subject import Subject

if TYPE_CHECKING:
    from llmcli.commands.changes import Changes
    from llmcli.commands.loading import Opened
    from llmcli.commands.recorded import PastStep
    from llmcli.inspection.ask import Ask
    from llmcli.inspection.catalogue import ViewEntry
    from llmcli.inspection.plan import Plan
    from llmcli.inspection.recorded import Held
    from llmcli.inspection.run import Run
    from llmcli.inspection.values import View
    from llmcli.render.drawing import Canvas

SHORTEN = "Shorten it; --view tokens takes a longer text, too."


@dataclass(frozen=True)
class Request:
    """The command line, read; `canvas` is None where nothing will be drawn on stdout."""

    model: str
    again: tuple[str, ...]  # the options that name it and how it computes, where they were typed
    prompt: str | None
    piped: str  # the prompt that was read already, or ""
    where: Where
    one_view: OneView
    interventions: Interventions  # as they were typed
    changed: Interventions  # and those in force: where none was typed, those of the trace
    baseline: bool
    drawing: Drawing
    seed: int | None
    compute: Compute
    tensors: Path | None
    canvas: Canvas | None
    quiet: bool
    past: PastStep | None = None  # what is looked into, where it is a step of a trace

    def views(self, wanted: dict[str, ViewEntry]) -> Made:
        """The views in their order; --baseline adds what the change did, and the untouched ones."""
        from llmcli.inspection.catalogue import entries
        from llmcli.inspection.difference import difference

        if not any(entry.weights for entry in wanted.values()):
            return self._model_alone()
        if self.one_view.positive is not None and "steer" in wanted:
            return vector_from_examples(self)
        from llmcli.commands.loading import model_json

        opened, text, ids, prompt_ids = self._subject(wanted)
        changes = self._changes(opened, ids)
        self._check_outputs(opened, changes.files)
        plan = changes.plan(opened, prompt_ids)
        ask = replace(self._ask(opened, ids), changes=tuple(changes.lines))
        tries = "steer" in wanted  # strengths of its own
        if tries:
            ask = replace(ask, sweep=sweep_of(self, plan, ask.sampling))
        run = self.run(opened, ids, plan, prompt_ids, quiet=self.quiet or tries)
        held = self._held(run)
        about = {
            "model": model_json(opened, run.model),
            **({"prompt": text, "ids": ids} if ids else {}),
            **({"changes": changes.lines} if changes else {}),
            **({"trace": asdict(held)} if held else {}),
        }
        untouched = []
        if self.baseline and ids:
            plain = replace(run, patch={})
            untouched = [
                self._view(name, opened, plain, ask)
                for name, entry in wanted.items()
                if entry.changes and not entry.experiment
            ]
            wanted = {**wanted, **entries(["change"])}
        views = [self._view(name, opened, run, ask) for name in wanted]
        differences: list[View] = [
            difference(*self._lined_up([(view, run), (before, plain)], ask))
            for before in untouched
            for view in views
            if view.name == before.name and not wanted[view.name].proof
        ]
        self._save_tensors(wanted, run, ask, about)
        return Made(views, about, untouched, differences, held, self._again(text))

    def _lined_up(self, pair: Sequence[tuple[View, Run]], ask: Ask) -> list[View]:
        """The views, each with all that the other lists: what moved most may be in one alone."""
        from llmcli.inspection.catalogue import computing
        from llmcli.inspection.difference import listed

        lists = [listed(view) for view, _ in pair]
        if lists[0] == lists[1]:
            return [view for view, _ in pair]
        name = pair[0][0].name
        asked = replace(self._fitted(name, ask), also=frozenset[Any]().union(*lists[0], *lists[1]))
        return [computing(name).view(run, asked) for _, run in pair]

    def _subject(self, wanted: dict[str, ViewEntry]) -> tuple[Opened, str, list[int], list[int]]:
        """The model, the text, its ids, and those of them that are the prompt.

        Where no view is about a prompt, none is read.
        """
        from llmcli.commands.input import read_text
        from llmcli.commands.job import prompt_ids
        from llmcli.commands.loading import open_model

        if not any(entry.prompt for entry in wanted.values()):
            return self.past.run.opened if self.past else open_model(self.model), "", [], []
        if self.past:
            return self.past.run.opened, self.past.text, self.past.ids, self.past.prompt_ids
        text = self.piped or read_text(self.prompt, 'llmcli inspect "Once upon a time"')
        opened = open_model(self.model)
        long = all(entry.long or not entry.prompt for entry in wanted.values())
        ids = prompt_ids(opened, text, remedy=SHORTEN, long=long)
        return opened, text, ids, ids

    def _again(self, text: str) -> Subject:
        """What is looked at, for commands that look further."""
        step = self.past.options if self.past else ()
        return Subject(text, step, self.again, self.interventions.words)

    def _check_outputs(self, opened: Opened, others: Sequence[Path]) -> None:
        """Raises UsageError where --tensors would replace what is read."""
        from llmcli.commands.files import refuse_inputs

        if self.tensors is not None:
            refuse_inputs("--tensors", self.tensors, [*opened.files, *others])

    def _held(self, run: Run) -> Held | None:
        """The recorded step against the same step here; None where something else is asked for."""
        if self.past is None or not run.ids or self.interventions != Interventions():
            return None
        from llmcli.inspection.recorded import held

        return held(run, self.past.step, self.past.run.dtype)

    def _changes(self, opened: Opened, ids: list[int]) -> Changes:
        """The interventions in force, held against the model; without ids nothing is changed."""
        from llmcli.commands.changes import read_changes

        changes = read_changes(opened, self.changed if ids else Interventions())
        if changes and len(ids) > opened.config.n_ctx:
            raise UsageError(
                f"The text has {len(ids)} tokens and is read in windows of {opened.config.n_ctx}; "
                "a change is about one.",
                "Shorten the text.",
            )
        return changes

    def _model_alone(self) -> Made:
        """View `model`, from the header and the config: no torch, no tokenizer."""
        from llmcli import hub
        from llmcli.inspection import model

        folder = hub.resolve(self.model)
        made = model.view(folder, self.model, hub.revision_of(folder))
        about = {"model": {"name": self.model, "revision": made.revision or None}}
        return Made([made], about, subject=self._again(""))

    def _ask(self, opened: Opened, ids: list[int]) -> Ask:
        """What to show, held against the model and the prompt before torch is there.

        Without `ids` a position is one of the context.
        """
        from llmcli.commands.inspect_target import analogy_terms, index, page_asked
        from llmcli.inspection.ask import Ask

        where, config = self.where, opened.config
        places = len(ids) or config.n_ctx
        things = "tokens in the prompt" if ids else "positions in the context"
        position = index("--position", where.position, places, things)
        token = self._id(opened, "--token", where.token)
        versus = self._id(opened, "--versus", where.versus)
        if token is not None and token == versus:
            raise UsageError(
                "--token and --versus are the same token: nothing is between them.",
                "Leave one of them out, or name another.",
            )
        ask = Ask(
            position=places - 1 if position is None else position,
            layer=index("--layer", where.layer, config.n_layer, "layers"),
            head=index("--head", where.head, config.n_head, "heads"),
            token=token,
            versus=versus,
            analogy=analogy_terms(where.analogy, opened.tokenizer, config),
            rows=where.rows,
            corrupt=self._corrupt(opened),
            page=page_asked(self.one_view.page, self.one_view.all),
        )
        return self._drawn(ask, opened)

    def _id(self, opened: Opened, option: str, text: str | None) -> int | None:
        """The id of the token that `option` names; a bare word taken after a space is said."""
        from llmcli.commands.inspect_target import say_which
        from llmcli.commands.token_names import token_named

        if text is None:
            return None
        n_ids = opened.config.vocab_size
        id = token_named(option, text, opened.tokenizer, spaced=True, n_ids=n_ids)
        if not self.quiet:
            say_which(option, text, id, opened.tokenizer)
        return id

    def _drawn(self, ask: Ask, opened: Opened) -> Ask:
        """`ask` with how the token after its position is drawn: as asked, and else as recorded.

        What follows a place of the recorded prompt was never drawn, and is as a first step.
        """
        from llmcli.commands.loading import sampling_from

        if self.past is None:
            sampling = sampling_from(opened, self.drawing)
            return replace(ask, sampling=sampling, seed=self.seed or 0)
        past, steps = self.past.run, self.past.record.steps
        index = ask.position + 1 - len(self.past.prompt_ids)  # of the step that came after it
        step = steps[index] if 0 <= index < len(steps) else None
        return replace(
            ask,
            sampling=sampling_from(opened, self.drawing, past.sampling),
            seed=past.header["seed"] if self.seed is None else self.seed,
            draw=self.past.record.begun.draw,
            n_drawn=step.index if step else 0,
            forced=step.id if step and step.forced else None,
        )

    def _corrupt(self, opened: Opened) -> tuple[int, ...] | None:
        """The ids of --corrupt."""
        from llmcli.commands.job import prompt_ids

        text = self.one_view.corrupt
        if text is None:
            return None
        same = "Shorten it: it is to be as many tokens long as the prompt."
        return tuple(prompt_ids(opened, text, remedy=same, what="--corrupt"))

    def run(
        self,
        opened: Opened,
        ids: list[int],
        plan: Plan | None = None,
        prompt_ids: list[int] | None = None,
        quiet: bool = True,
    ) -> Run:
        """The model with its weights, and the text, if any: torch is imported here.

        The prompt is the text's beginning, and all of it where nothing else is given; `quiet` says
        nothing of what the plan drowns the stream in.
        """
        from llmcli.commands.changes import patches_of
        from llmcli.commands.loading import load
        from llmcli.inspection.run import Run

        n_tokens = len(ids) + (self.one_view.max_new_tokens or 0)
        n_tokens = max(1, min(n_tokens, opened.config.n_ctx))
        compute = self.compute
        loaded = load(opened, compute, n_tokens=n_tokens, quiet=self.quiet)
        return Run(
            loaded,
            ids,
            opened.token_bytes,
            patches_of(plan, loaded, prompt_ids or ids, quiet) if plan else {},
            len(opened.tokenizer.prefix_ids),
            opened.drawable,
            load_fp32=lambda: load(opened, replace(compute, dtype=DType.float32, quantize=None)),
        )

    def _view(self, name: str, opened: Opened, run: Run, ask: Ask) -> View:
        from llmcli.inspection import model
        from llmcli.inspection.catalogue import computing

        if name == "model":
            return model.view(opened.folder, self.model, opened.revision)
        module, asked = computing(name), self._fitted(name, ask)
        if hasattr(module, "cost"):
            price = module.cost(run, asked)  # which may refuse, so it comes first
            if price and not self.quiet:
                say(f"--view {name}: {price}.")
        return noted(module.view(run, asked), run)

    def _fitted(self, name: str, ask: Ask) -> Ask:
        """What a picture has no room for is not computed, but with --baseline, which compares."""
        drawing = import_module(f"llmcli.render.views.{name}")
        given = ask.rows is not None or self.baseline
        if self.canvas is None or given or not hasattr(drawing, "room"):
            return ask
        return replace(ask, rows=drawing.room(self.canvas.width))

    def _save_tensors(
        self, wanted: dict[str, ViewEntry], run: Run, ask: Ask, about: dict[str, Any]
    ) -> None:
        from llmcli.commands.files import write
        from llmcli.inspection.catalogue import computing
        from llmcli.inspection.tensors import packed

        if self.tensors is None:
            return
        tensors: dict[str, Any] = {}
        for name in wanted:
            make = getattr(computing(name), "tensors", None)
            if make is not None:
                made = make(run, ask)
                tensors |= {f"{name}.{key}": tensor for key, tensor in made.items()}
        write(self.tensors, packed(tensors, about))
