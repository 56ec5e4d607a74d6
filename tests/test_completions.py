"""The files in completions/ are what the program itself would print."""

from __future__ import annotations

import pytest

from completions import FILES, FOLDER, script


@pytest.mark.parametrize("shell", FILES)
def test_completion_files_are_current(shell):
    assert (FOLDER / FILES[shell]).read_text() == script(shell)
