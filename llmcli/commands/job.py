"""What to generate with: everything about a run that does not depend on the prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmcli.commands.loading import Opened, as_options, load
from llmcli.commands.options import Compute
from llmcli.commands.token_names import token_named, whole_number
from llmcli.config import Sampling
from llmcli.errors import UsageError
from llmcli.streaming import Piece, TextStream, pieces

if TYPE_CHECKING:
    from llmcli.gpt.generation import Look, Step
    from llmcli.gpt.model import GPT
    from llmcli.gpt.tap import Tap


Runner = Callable[  # `Job.run`, or what stands in its place
    ["GPT", Sequence[Sequence[int]], Sequence[tuple[int, int]], Sequence[TextStream], "Tap | None"],
    Iterator[Piece],
]
MAX_TOKEN_CHARS = 1024  # longer than any token in use: GPT-2's longest has 128
TRUNCATE = "Shorten it, or cut it with --truncate-prompt left (keeps its end) or right."


@dataclass(frozen=True)
class Job:
    """The options of a run; `run` applies them to a batch of prompts."""

    opened: Opened
    sampling: Sampling
    seed: int
    max_new_tokens: int
    eos_ids: frozenset[int] = frozenset()  # the model's own, unless they are ignored
    stop_ids: frozenset[int] = frozenset()  # those that were asked for
    stops: tuple[str, ...] = ()
    keep_stop: bool = False
    forced: dict[int, int] = field(default_factory=dict)
    top_probs: int | None = None  # None: steps carry ids alone
    use_cache: bool = True
    draw: tuple[int, int] = (0, 0)  # of one prompt's first sample: the prompt's place, the sample

    @property
    def all_stop_ids(self) -> frozenset[int]:
        """At which a text ends."""
        return self.eos_ids | self.stop_ids

    @property
    def hidden_ids(self) -> frozenset[int]:
        """Those of them that are no part of the text."""
        return self.eos_ids if self.keep_stop else self.all_stop_ids

    @property
    def options(self) -> dict[str, Any]:
        """How it runs, as JSON has it."""
        return {
            **as_options(self.sampling),
            "max_new_tokens": self.max_new_tokens, "stop": list(self.stops),
            "keep_stop": self.keep_stop, "stop_ids": sorted(self.all_stop_ids),
            "force": [list(pair) for pair in sorted(self.forced.items())],
            "cache": self.use_cache,
        }  # fmt: skip

    def room(self, length: int) -> int:
        """How many tokens the context has room for after so many, and the run wants."""
        return min(self.max_new_tokens, self.opened.config.n_ctx - length)

    def sizes(self, lengths: Collection[int]) -> tuple[int, int]:
        """Tokens of a row after prompts of such lengths; how many go through the model at once."""
        n_tokens = max(lengths) + self.room(min(lengths))  # all rows are as wide
        return n_tokens, max(lengths) if self.use_cache else n_tokens

    def load(
        self,
        compute: Compute,
        lengths: Collection[int],
        batch: int,
        unpacked: bool,
        quiet: bool = False,
    ) -> GPT:
        """`loading.load` for prompts of such lengths, of which a `batch` is run at a time."""
        n_tokens, at_once = self.sizes(lengths)
        return load(self.opened, compute, batch, n_tokens, unpacked, quiet, at_once)

    def filled(self, reason: str | None, n_tokens: int) -> bool:
        """Whether the context, and not --max-new-tokens, ended a text of so many tokens."""
        return reason == "length" and n_tokens < self.max_new_tokens

    def unreached(self, lengths: Sequence[int]) -> str:
        """What to say of texts that ended, after so many tokens, ahead of a forced step, if any."""
        last = max(self.forced, default=-1)
        early = sum(n <= last for n in lengths)
        texts = "The text" if len(lengths) == 1 else f"{early} of {len(lengths)} texts"
        return f"{texts} ended before step {last}, which --force names." if early else ""

    def check_forced(self, length: int) -> None:
        """Raises UsageError where a step is forced that after so many tokens has no room."""
        last = self.opened.config.n_ctx - length
        if max(self.forced, default=0) > last:
            raise UsageError(
                f"--force: the context is full after step {last}.",
                "Name an earlier step, or shorten the prompt.",
            )

    def streams(self, n_rows: int) -> list[TextStream]:
        """What turns each row's ids into text."""
        tokenizer = self.opened.tokenizer
        return [TextStream(tokenizer, self.stops, self.keep_stop) for _ in range(n_rows)]

    def draws(self, n: int) -> list[tuple[int, int]]:
        """What `n` samples of one prompt draw."""
        return [(self.draw[0], self.draw[1] + sample) for sample in range(n)]

    def run(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        draws: Sequence[tuple[int, int]],
        streams: Sequence[TextStream],
        tap: Tap | None = None,
        look: Look = lambda logits, kept: None,
    ) -> Iterator[Piece]:
        """Continue `prompts` as one batch; `draws` name each row's random numbers."""
        from llmcli.gpt.generation import NO_TAP, generate
        from llmcli.gpt.sampling import generator_for

        ended: set[int] = set()
        steps: Iterator[Step] = generate(
            model,
            prompts,
            self.sampling,
            [generator_for(self.seed, *draw) for draw in draws],
            max_new_tokens=self.max_new_tokens,
            stop_ids=self.all_stop_ids,
            forced=self.forced,
            drawable=self.opened.drawable,
            top_probs=self.top_probs,
            use_cache=self.use_cache,
            ended=ended,
            tap=tap or NO_TAP,
            look=look,
        )
        return pieces(steps, streams, ended, self.hidden_ids)


def prompt_ids(
    opened: Opened,
    text: str,
    truncate: str | None = None,
    told: Callable[[str], None] = lambda _: None,
    new: int = 1,
    remedy: str = TRUNCATE,
    long: bool = False,
    what: str = "The prompt",
) -> list[int]:
    """What the model is given: the tokenizer's own prefix and the text's ids, if need be cut.

    What is cut leaves room for `new` tokens, or half of the context if that is less; that it was is
    `told`. Raises UsageError, with both numbers, where ids are more than the context holds, unless
    it may be `long`; and where there is none.
    """
    prefix = list(opened.tokenizer.prefix_ids)
    n_ctx = sys.maxsize if long else opened.config.n_ctx
    ids, more = _encode_end(opened, text, n_ctx, truncate)
    n = len(prefix) + len(ids)
    if n > n_ctx and truncate:
        room = n_ctx - len(prefix)
        kept = max(room + 1 - new, (room + 1) // 2)  # the last new token needs no room
        told(f"The prompt's {more}{n} tokens are cut to {len(prefix) + kept}.")
        ids = ids[len(ids) - kept :] if truncate == "left" else ids[:kept]
    elif n > n_ctx:
        raise UsageError(f"{what} has {more}{n} tokens; the model's context holds {n_ctx}.", remedy)
    elif not n:
        raise UsageError(
            "The prompt is empty, and this model has no token to begin with.", "Give it a word."
        )
    return prefix + ids


def _encode_end(
    opened: Opened, text: str, n_ctx: int, truncate: str | None
) -> tuple[list[int], str]:
    """The ids of `text`, or of the end of it that will be kept where it is far too long anyway."""
    enough = n_ctx * MAX_TOKEN_CHARS
    if len(text) > enough:
        text = text[-enough:] if truncate == "left" else text[:enough]
        return opened.encode(text), "more than "
    return opened.encode(text), ""


def forced_ids(opened: Opened, entries: Sequence[str], max_new_tokens: int) -> dict[int, int]:
    """The id forced at each step, from "STEP=TOKEN" entries."""
    forced: dict[int, int] = {}
    for entry in entries:
        step, equals, token = entry.partition("=")
        if not equals or not token or not (step.isascii() and step.isdigit()):
            raise UsageError(f"--force {entry!r} is not STEP=TOKEN.", 'For example "3= cat".')
        index = whole_number(step)
        if index >= max_new_tokens:
            raise UsageError(
                f"--force {entry!r}: the last step is {max_new_tokens - 1}; they count from 0.",
                "Name an earlier step, or raise --max-new-tokens.",
            )
        if index in forced:
            raise UsageError(f"--force gives step {index} twice.", "Leave one of them out.")
        forced[index] = token_named("--force", token, opened.tokenizer, digits=True)
    return forced
