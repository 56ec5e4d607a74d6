"""The shell completions that completions/ holds: `python tools/completions.py` writes them anew."""

from pathlib import Path

from typer.completion import get_completion_script

FOLDER = Path(__file__).resolve().parents[1] / "completions"
FILES = {"bash": "llmcli.bash", "zsh": "_llmcli", "fish": "llmcli.fish"}


def script(shell: str) -> str:
    """What llmcli itself would install for `shell`."""
    made = get_completion_script(prog_name="llmcli", complete_var="_LLMCLI_COMPLETE", shell=shell)
    return made + "\n"


if __name__ == "__main__":
    for shell, name in FILES.items():
        (FOLDER / name).write_text(script(shell))
