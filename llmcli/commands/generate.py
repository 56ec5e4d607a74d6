"""`llmcli generate`: a prompt continued, token by token."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmcli.commands.options import Color, ColorMode, Model, Quiet
from llmcli.errors import IntegrityError, UsageError

if TYPE_CHECKING:
    from llmcli.commands.writers import Writer
    from llmcli.config import ModelConfig, Sampling
    from llmcli.gpt.generation import Step
    from llmcli.tokenizer import Tokenizer


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to continue; - or a pipe reads stdin.")
    ] = None,
    model: Model = "fable",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 400,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Below 1 safer, above 1 wilder; 0 is greedy. [default: the model's, else 0.8]",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Draw from the k most probable tokens; 0: all. [default: the model's, else 0]",
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Draw from the fewest tokens that together reach this probability. "
            "[default: the model's, else 0.95]",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="The same seed, the same text.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end-of-text token, and print it.")
    ] = False,
    truncate_prompt: Annotated[
        Literal["left", "right"] | None,
        typer.Option(help="Which end of a prompt that is too long to drop."),
    ] = None,
    top_probs: Annotated[
        int,
        typer.Option(
            min=0, max=50, metavar="K", help="Show the K most probable tokens of each step."
        ),
    ] = 0,
    stats: Annotated[bool, typer.Option("--stats", help="Show timings on stderr.")] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Compute all tokens anew at each step: slower.")
    ] = False,
    color: Color = ColorMode.auto,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt.

    llmcli generate "Once upon a time"

    llmcli generate "Tom had a red ball." --temperature 0 --top-probs 5

    cat prompt.txt | llmcli generate --seed 7 > story.txt

    Filters apply in this order: temperature, top-k, top-p.
    """
    import secrets
    import time

    from llmcli.commands.input import read_text
    from llmcli.config import read_config
    from llmcli.hub import resolve
    from llmcli.streaming import TextStream
    from llmcli.tokenizer import Tokenizer

    text = read_text(prompt, 'llmcli generate "Once upon a time"').removesuffix("\n")
    started = time.perf_counter()
    folder = resolve(model)
    config = read_config(folder)
    sampling = _sampling(folder, config.vocab_size, temperature, top_k, top_p)
    tokenizer = Tokenizer.from_folder(folder)
    ids = _prompt_ids(tokenizer, text, config, truncate_prompt, quiet)

    from llmcli.gpt import generation, weights  # torch: only now that all else is well
    from llmcli.gpt.place import use_threads

    loaded = weights.load_model(folder, config)
    use_threads(loaded)
    load_s = time.perf_counter() - started
    seed = secrets.randbits(32) if seed is None else seed
    steps = generation.generate(
        loaded,
        [ids],
        sampling,
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop_ids=() if ignore_eos else config.eos_ids,
        top_probs=top_probs,
        use_cache=not no_cache,
    )
    writer = _writer(tokenizer, text, top_probs, color)
    stream = TextStream(tokenizer)
    taken: list[generation.Step] = []
    try:
        for step in steps:
            # The end-of-text token ends the text and is no part of it.
            piece = "" if step.finish_reason == "stop" else stream.feed(step.id)
            writer.step(step, piece)
            taken.append(step)
    finally:
        writer.end(stream.flush())
    if stats:
        print(_stats(load_s, len(ids), taken, seed), file=sys.stderr)


def _sampling(
    folder: Path,
    vocab_size: int,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
) -> Sampling:
    """The options given, over what the model's generation_config.json says."""
    from llmcli.config import read_sampling

    if temperature is not None and not math.isfinite(temperature):
        raise UsageError(f"--temperature must be a number, not {temperature}.", "0 is greedy.")
    if top_k is not None and top_k > vocab_size:
        raise UsageError(f"--top-k {top_k} is more than the {vocab_size} tokens that there are.")
    default = read_sampling(folder)
    given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return replace(default, **{key: value for key, value in given.items() if value is not None})


def _prompt_ids(
    tokenizer: Tokenizer,
    text: str,
    config: ModelConfig,
    truncate: Literal["left", "right"] | None,
    quiet: bool,
) -> list[int]:
    """What the model is given: the tokenizer's own prefix and the text's ids, if need be cut."""
    prefix, ids = list(tokenizer.prefix_ids), tokenizer.encode(text)
    if (highest := max(prefix + ids, default=0)) >= config.vocab_size:
        raise IntegrityError(
            f"The tokenizer gives the id {highest}; the model knows ids below {config.vocab_size}.",
            "tokenizer.json and config.json belong to different models.",
        )
    room = config.n_ctx - len(prefix)
    if len(ids) > room and truncate:
        if not quiet:
            print(f"The prompt's {len(ids)} tokens are cut to {room}.", file=sys.stderr)
        ids = ids[-room:] if truncate == "left" else ids[:room]
    if len(ids) > room:
        raise UsageError(
            f"The prompt has {len(ids)} tokens; the model's context has room for {room}.",
            "Shorten it, or cut it with --truncate-prompt left (keeps its end) or right.",
        )
    return prefix + ids


def _writer(tokenizer: Tokenizer, prompt: str, top_probs: int, color: ColorMode) -> Writer:
    from llmcli.commands.writers import PictureWriter, TextWriter, TsvWriter

    if not top_probs:
        return TextWriter()
    if sys.stdout.isatty() or color == ColorMode.always:
        return PictureWriter(tokenizer, prompt, color)
    return TsvWriter(tokenizer)


def _stats(load_s: float, n_prompt: int, steps: Sequence[Step], seed: int) -> str:
    """One line of timings; decoding is timed from the first token to the last."""
    if not steps:
        return f"load {load_s:.2f} s, no token"
    first_s, decode_s = steps[0].time_s, steps[-1].time_s - steps[0].time_s
    decode = f"{(len(steps) - 1) / decode_s:.0f} tok/s" if decode_s else "-"
    return (
        f"load {load_s:.2f} s | first token {1000 * first_s:.0f} ms | prefill {n_prompt} tokens, "
        f"{n_prompt / first_s:.0f} tok/s | decode {len(steps)} tokens, {decode} | "
        f"finish {steps[-1].finish_reason or 'interrupted'} | seed {seed}"
    )
