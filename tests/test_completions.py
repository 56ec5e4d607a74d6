"""The files in completions/ are what the program itself would print."""

from __future__ import annotations

import subprocess

import pytest
from test_cli import LLMCLI

from completions import FILES, FOLDER, script


@pytest.mark.parametrize("shell", FILES)
def test_completion_files_are_current(shell):
    assert (FOLDER / FILES[shell]).read_text() == script(shell)


@pytest.mark.parametrize(("typed", "proposed"), [
    ("llmcli generate x --dtype = bf", "bfloat16"), ("llmcli generate --dtype bf", "bfloat16"),
    ("llmcli inspect x --layer = 1 --view = atten", "attention"),
    ("llmcli generate --dtype =", "bfloat16"),
])  # fmt: skip
def test_bash_completes_a_value_after_an_equals_sign(typed, proposed):
    """Bash makes three words of `--dtype=bf`."""
    code = (
        f"source {FOLDER / FILES['bash']}; COMP_WORDS=({typed}); "
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); "
        '_llmcli_completion "$0"; echo "${COMPREPLY[*]}"'
    )
    run = subprocess.run(
        ["bash", "-c", code, "\n".join(LLMCLI)], capture_output=True, text=True, check=True
    )
    assert proposed in run.stdout.split()
