"""Damaged files end with a sentence and a documented code; `tools/fuzz.py` goes on for longer."""

from __future__ import annotations

from conftest import FABLE
from fuzz import fuzz


def test_damaged_models_never_escape(model_folder, tmp_path):
    ends, findings = fuzz(model_folder, count=240, seed=1, keep=tmp_path / "kept")
    assert findings == []
    assert len(ends) > 6  # several ends for each of the three files


def test_damaged_fables_never_escape(tmp_path):
    _, findings = fuzz(FABLE, count=60, seed=2, keep=tmp_path / "kept")
    assert findings == []
