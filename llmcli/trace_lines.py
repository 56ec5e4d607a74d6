"""The lines of a trace: a text that begins, and a step; to JSON and back, and how two steps differ.

What a stranger wrote is held to its types before anything is done with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmcli.strict_json import one_line

if TYPE_CHECKING:
    from llmcli.gpt import facts

MAX_INT = 2**53
DIGITS = 9  # significant ones, after which every float32 is itself again
# json.dumps would make a new encoder for each line.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


# How far apart two computations of one logprob (nats) may be: what another order of summing costs
# on logits of about 100 in float32, and one or two steps of the coarser formats' own grids.
TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.5, "int8": 0.5, "int4": 0.5}


@dataclass(frozen=True, slots=True)
class Choice:
    """One vocabulary entry with its natural-log probability, before and after the filters."""

    id: int
    text: bytes
    logprob: float
    drawn_logprob: float  # -inf where the filters cut it


@dataclass(frozen=True, slots=True)
class LensLayer:
    """What the step would have said, were this layer the last."""

    top: int  # an id
    prob: float
    kl_bits: float  # KL(final || here)
    rank: int  # here, of the token that was chosen


@dataclass(frozen=True, slots=True)
class Begun:
    """A text that begins: its prompt's ids, and which random numbers it draws."""

    run: int
    ids: tuple[int, ...]
    prompt: str
    prompt_id: str | int | None  # as --prompts names it
    draw: tuple[int, int]  # the prompt's place, the sample
    time_s: float  # since the trace began

    def line(self) -> str:
        return _encoded({
            "run": self.run, "ids": self.ids, "prompt": self.prompt,
            "prompt_id": self.prompt_id, "draw": self.draw, "time_s": round(self.time_s, 6),
        })  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one text."""

    run: int
    index: int  # from 0
    chosen: Choice
    rank: int
    entropy_bits: float
    kept: float
    top: tuple[Choice, ...]  # the likeliest before the filters, and those after them, once each
    forced: bool
    time_s: float  # since the trace began
    finish_reason: str | None
    lens: tuple[LensLayer, ...] = ()  # after the embedding and after each layer

    @property
    def id(self) -> int:
        return self.chosen.id

    @property
    def surprisal_bits(self) -> float:
        return max(0.0, -self.chosen.logprob / math.log(2))  # no 0.0 with a minus


def step_line(
    run: int,
    index: int,
    known: facts.Facts,
    time_s: float,
    forced: bool,
    finish_reason: str | None,
    lens: str,
    text: Callable[[int], str],
) -> str:
    """The line of a step; what is false or nothing is left out. `text` gives an id's `json_text`.

    Put together here: for an encoder, all numbers would first have to be rounded, which takes as
    long as a small model's layer.
    """
    c, top = known.chosen, {c.id: c for c in (*known.top, *known.drawn_top)}.values()
    listed = ",".join(
        [f"[{t.id},{text(t.id)},{_number(t.logprob)},{_number(t.drawn_logprob)}]" for t in top]
    )
    return (
        f'{{"run":{run},"step":{index},"id":{c.id},"text":{text(c.id)},'
        f'"logprob":{_number(c.logprob)},"drawn_logprob":{_number(c.drawn_logprob)},'
        f'"rank":{known.rank},"entropy_bits":{_number(known.entropy_bits)},'
        f'"kept":{_number(known.kept)},"time_s":{round(time_s, 6)},"top":[{listed}]'
        + (',"forced":true' if forced else "")
        + (f',"finish_reason":"{finish_reason}"' if finish_reason else "")
        + (f',"lens":{lens}' if lens else "")
        + "}"
    )


def lens_text(layers: Iterable[LensLayer]) -> str:
    """What a step would have said, were each layer the last, as JSON; "" where nobody looked."""
    texts = [f"[{at.top},{_number(at.prob)},{_number(at.kl_bits)},{at.rank}]" for at in layers]
    return f"[{','.join(texts)}]" if texts else ""


def json_text(token: bytes) -> str:
    """A token's text as JSON; its bytes where they are only a part of a character."""
    try:
        return _encoded(token.decode())
    except UnicodeDecodeError:
        return _encoded(list(token))


def difference(step: Step, logprobs: Mapping[int, float]) -> float:
    """The largest distance (nats) of a recorded logprob from that of the same id in `logprobs`."""
    recorded = (step.chosen, *step.top)
    apart = [
        abs(c.logprob - float(f"{logprobs[c.id]:.{DIGITS}g}")) for c in recorded if c.id in logprobs
    ]
    return max((d if math.isfinite(d) else math.inf for d in apart), default=0.0)


def kl_bits(p: Step, q: Step) -> float:
    """A lower bound of KL(p || q), in bits, from the logprobs that both steps recorded.

    What is not in both lists is one outcome together: lumping outcomes never raises a KL (the data
    processing inequality; Cover and Thomas, 2006, section 2.8).
    """
    ps, qs = ({c.id: c.logprob for c in (s.chosen, *s.top)} for s in (p, q))
    both = [(ps[id], qs[id]) for id in ps.keys() & qs.keys() if qs[id] > -math.inf]
    total = sum(math.exp(a) * (a - b) for a, b in both if a > -math.inf)
    rests = [max(1e-7, 1 - sum(math.exp(pair[i]) for pair in both)) for i in (0, 1)]
    return max(0.0, (total + rests[0] * math.log(rests[0] / rests[1])) / math.log(2))


# --- one value, one line -------------------------------------------------------------------------


def _encoded(value: Any) -> str:
    return one_line(_encode(value))


def _number(value: float) -> str:
    """DIGITS of a float, null where it is infinite."""
    return f"{value:.{DIGITS}g}" if math.isfinite(value) else "null"


def parsed(line: bytes) -> Begun | Step:
    """A line after the header. Raises ValueError that says what is wrong with it."""
    try:
        raw = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    try:
        return _step(raw) if "step" in raw else _begun(raw)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"neither the beginning of a text nor a step ({error})") from error


def _begun(raw: Any) -> Begun:
    prompt_id, (prompt, sample) = raw["prompt_id"], raw["draw"]
    if type(raw["prompt"]) is not str or type(prompt_id) not in (str, int, type(None)):
        raise TypeError("prompt")
    ids = tuple(_natural(id) for id in raw["ids"])
    draw = (_natural(prompt), _natural(sample))
    return Begun(_natural(raw["run"]), ids, raw["prompt"], prompt_id, draw, _float(raw["time_s"]))


def _step(raw: Any) -> Step:
    reason = raw.get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise TypeError("finish_reason")
    return Step(
        run=_natural(raw["run"]),
        index=_natural(raw["step"]),
        chosen=_choice(raw["id"], raw["text"], raw["logprob"], raw["drawn_logprob"]),
        rank=_natural(raw["rank"]),
        entropy_bits=_float(raw["entropy_bits"]),
        kept=_float(raw["kept"]),
        top=tuple([_choice(*entry) for entry in raw["top"]]),
        forced=raw.get("forced") is True,
        time_s=_float(raw["time_s"]),
        finish_reason=reason,
        lens=tuple(
            LensLayer(_natural(top), _float(prob), _float(kl), _natural(rank))
            for top, prob, kl, rank in raw.get("lens", ())
        ),
    )


def _choice(id: Any, text: Any, logprob: Any, drawn_logprob: Any) -> Choice:
    if type(text) not in (str, list):
        raise TypeError("text")
    data = text.encode() if type(text) is str else bytes(text)
    return Choice(_natural(id), data, _logprob(logprob), _logprob(drawn_logprob))


def _logprob(value: Any) -> float:
    if value is None:
        return -math.inf
    value = _float(value)
    if value > 1e-3:
        raise ValueError("a logprob above 0")
    return value


def _float(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < MAX_INT:
        raise TypeError("a number that is none")
    return float(value)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_INT:
        raise TypeError("a count that is none")
    return value
