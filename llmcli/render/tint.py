"""Text tinted by how probable each token was; the least probable are marked without colour too."""

from __future__ import annotations

from rich.text import Text

from llmcli.render.text import harmless

# From the likely to the unlikely: the least probability, its name, its style. Foreground colours
# that read on light and on dark; the last ones are marked in the text as well.
LEVELS = [
    (0.5, "50 %", "green"),
    (0.2, "20 %", "cyan"),
    (0.05, "5 %", "yellow"),
    (0.01, "1 %", "magenta"),
    (0.0, "less", "bold red"),
]
MARKS = "‹", "›"  # around what had less than 1 %


def tinted(text: str, prob: float | None) -> Text:
    """`text` in the style of its probability, if it has one; marks leave white space outside."""
    text = harmless(text)
    if prob is None:
        return Text(text)
    style = next(style for least, _, style in LEVELS if prob >= least)
    core = text.strip()
    if prob < LEVELS[-2][0] and core:
        before, _, after = text.partition(core)
        text = f"{before}{MARKS[0]}{core}{MARKS[1]}{after}"
    return Text(text, style=style)


def legend(color: bool) -> Text:
    """What the tints and the marks mean, on one line; without `color` there are marks alone."""
    if not color:
        return Text(f"{MARKS[0]}so{MARKS[1]}: a probability below {LEVELS[-2][1]}", style="dim")
    line = Text().append("probability  ", style="dim")  # a base style would dim the tints too
    for least, name, style in LEVELS:
        line.append(f"≥ {name}  " if least else f"{MARKS[0]}{name}{MARKS[1]}", style=style)
    return line
