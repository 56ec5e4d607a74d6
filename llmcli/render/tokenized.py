"""Pictures of tokenization: tokens side by side, a table, merges, several tokenizers, a vocabulary.

Borders are lines, so that they show without colour; colours alternate to make them plainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

from llmcli.render.drawing import columns, fit, heading, tail
from llmcli.render.text import decoded, harmless
from llmcli.units import plural

# Dark text on light grounds: the two are told apart, and read, on any terminal; of 16 colours they
# become 14 and 15.
TINTS = (
    Style(color="color(16)", bgcolor="color(117)"),
    Style(color="color(16)", bgcolor="color(223)"),
)
SPECIAL = Style(color="color(16)", bgcolor="color(217)", bold=True)
DIFFERENT = Style(color="color(16)", bgcolor="color(222)", bold=True)
BORDER = "│"
MARK = "≠"

Steps = Sequence[tuple[bytes, bytes, int, Sequence[bytes]]]  # left, right, rank, parts


def visible(token: bytes) -> str:
    r"""A token in a picture: "·" for a space, "⏎" for a line end, "\xe6" for a lone byte."""
    text = decoded(token)
    if text is None:
        spelled = (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in token)
        return "".join(spelled).replace(" ", "·")
    for raw, shown in ((" ", "·"), ("\r", "\\r"), ("\n", "⏎"), ("\t", "→")):
        text = text.replace(raw, shown)
    return harmless(text)


def picture(tokens: Sequence[tuple[bytes, int, bool]], facts: Sequence[str], width: int) -> Text:
    """(token, id, special) side by side, ids beneath; a line of the text starts a line."""
    out = heading(plural(len(tokens), "token"), *facts, width=width)
    upper, lower, used = _edge(), _edge(), 1
    for place, (token, id, special) in enumerate(tokens):
        shown, number = visible(token), str(id)
        cells = max(cell_len(shown), len(number))
        if cells > width - 2:
            shown, cells = fit(shown, width - 2), width - 2
        if used > 1 and used + cells + 1 > width:
            out.append_text(upper).append("\n").append_text(lower).append("\n\n")
            upper, lower, used = _edge(), _edge(), 1
        style = SPECIAL if special else TINTS[place % 2]
        upper.append(fit(shown, cells), style=style).append(BORDER, style="dim")
        lower.append(fit(number, cells)).append(BORDER, style="dim")
        used += cells + 1
        if token.endswith(b"\n") and place + 1 < len(tokens):
            out.append_text(upper).append("\n").append_text(lower).append("\n\n")
            upper, lower, used = _edge(), _edge(), 1
    if used > 1:
        out.append_text(upper).append("\n").append_text(lower).append("\n")
    return out


def _edge() -> Text:
    return Text().append(BORDER, style="dim")


def table(rows: Sequence[dict[str, Any]], width: int) -> Text:
    """One line for each token: index, id, text, bytes, offsets, special or not."""
    room = width - 52  # what the other columns and the spaces between take
    token_cells, byte_cells = room // 2, room - room // 2
    out = columns(("index", -6), ("id", -8), ("token", token_cells), ("bytes", byte_cells),
                  ("byte offset", -17), ("char", -13), ("sp", -2))  # fmt: skip
    for row in rows:
        out.append(f"{row['index']:>6} ", style="cyan").append(f"{row['id']:>8} ")
        out.append(fit(row["token"], token_cells) + " ", style="bold")
        out.append(fit(row["bytes"], byte_cells) + " ", style="dim")
        out.append(f"{row['byte_start']:>8}-{row['byte_end']:<8} ")
        out.append(f"{row['char_start']:>6}-{row['char_end']:<6} ", style="dim")
        out.append("*\n" if row["special"] else "\n")
    return out


def merges(
    pieces: Sequence[tuple[bytes, bool, Sequence[int], Steps]], model: str, width: int
) -> Text:
    """Each piece (its bytes, whether looked up whole, its ids) and its merges in order."""
    n_ids = sum(len(ids) for _, _, ids, _ in pieces)
    out = heading(
        f"{plural(len(pieces), 'piece')}, {plural(n_ids, 'token')}",
        tail(model, 20),
        "lowest rank first",
        width=width,
    )
    for token, whole, ids, steps in pieces:
        out.append("\n").append(fit(visible(token), min(cell_len(visible(token)), width - 30)),
                                style="bold")  # fmt: skip
        numbers = " ".join(map(str, ids))
        why = "  looked up whole" if whole else ""
        out.append(f"{why}  → {fit(numbers, min(len(numbers), width // 3))}\n")
        if not whole:
            out.append(f"  {'rank':>7}  {'pair':<19} ", style="dim")
            out.append_text(_parts([bytes([b]) for b in token], width - 30, -1))
        for left, right, rank, parts in steps:
            pair = f"{visible(left)} + {visible(right)}"
            joined = parts.index(left + right)
            out.append(f"  {rank:>7}  ", style="cyan").append(fit(pair, 19) + " ")
            out.append_text(_parts(parts, width - 30, joined))
    return out


def _parts(parts: Sequence[bytes], width: int, joined: int) -> Text:
    """The parts of a piece on one line; the one that has just been joined stands out."""
    line, used = Text(), 0
    for place, part in enumerate(parts):
        shown = visible(part)
        if used + cell_len(shown) + 2 > width:
            line.append("…")
            break
        line.append(BORDER if place else "", style="dim")
        line.append(shown, style=DIFFERENT if place == joined else "")
        used += cell_len(shown) + 1
    return line.append("\n")


def versus(
    names: Sequence[str],
    counts: Sequence[int],
    spans: Sequence[tuple[bool, Sequence[Sequence[bytes]]]],
    nbytes: int,
    width: int,
) -> Text:
    """A line per tokenizer, cut where all cut; under what they cut differently stands a mark."""
    names = [tail(each, 20) for each in names]
    gutter = max(map(cell_len, names))
    different = sum(not same for same, _ in spans)
    out = heading(
        "versus", f"{nbytes:,} bytes", f"{different} of {len(spans)} stretches differ", width=width
    )
    for place, (label, count) in enumerate(zip(names, counts, strict=True)):
        per = f"{nbytes / count:.2f} bytes a token" if count else ""
        more = f"{count / counts[0] - 1:+.0%}" if place and counts[0] else ""
        out.append(f"  {fit(label, gutter)} {count:>7,} tokens  {per}  ")
        out.append(f"{more}\n", style="dim")
    room, line, used = width - gutter - 3, list[tuple[bool, list[str], int]](), 0
    for same, tokens in spans:
        cells = [BORDER.join(map(visible, each)) for each in tokens]
        size = min(max(map(cell_len, cells)), room - 1)
        if used + size + 1 > room:
            out.append_text(_versus_lines(names, gutter, line))
            line, used = [], 0
        line.append((same, [fit(cell, size) for cell in cells], size))
        used += size + 1
    return out.append_text(_versus_lines(names, gutter, line))


def _versus_lines(
    names: Sequence[str], gutter: int, line: Sequence[tuple[bool, list[str], int]]
) -> Text:
    """As many stretches as fit on a line, once for each tokenizer."""
    out = Text("\n")
    for number, label in enumerate(names):
        out.append(f"{fit(label, gutter)} ", style="cyan").append(BORDER, style="dim")
        for place, (same, cells, _) in enumerate(line):
            out.append(cells[number], style=TINTS[place % 2] if same else DIFFERENT)
            out.append(BORDER, style="dim")
        out.append("\n")
    if not all(same for same, _, _ in line):
        marks = "".join((" " if same else MARK) * size + " " for same, _, size in line)
        out.append(" " * (gutter + 2) + marks.rstrip() + "\n", style="bold")
    return out


def vocabulary(facts: Sequence[dict[str, Any]], size: int, width: int) -> Text:
    """What each id is; a merged token with the pair that makes it."""
    out = heading(f"{len(facts):,} of {size:,} tokens", width=width)
    cells = max((width - 48) // 2, 16)
    out.append_text(columns(("id", -8), ("token", cells), ("bytes", 16), ("kind", 11),
                            ("rank", -7), ("made of", cells)))  # fmt: skip
    for fact in facts:
        merge = fact["merge"]
        kind = "end of text" if fact["end_of_text"] else fact["kind"]
        out.append(f"{fact['id']:>8} ", style="cyan")
        out.append(fit(fact["token"], cells) + " ", style="bold")
        out.append(fit(fact["bytes"], 16) + " ", style="dim").append(fit(kind, 11))
        if merge:
            out.append(f" {merge['rank']:>7} {fit(merge['left'] + ' + ' + merge['right'], cells)}")
        out.append("\n")
    return out
