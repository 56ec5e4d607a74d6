"""What config files of old and of other programs hold is read as it was meant."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import edit_json

from llmcli.config import GREEDY, SENSIBLE, read_config, read_sampling


def test_bookkeeping_of_any_version_is_passed_over(model_folder, copied):
    odd = {"num_labels": 1, "predict_special_tokens": True, "use_return_dict": True}
    edit_json(copied / "config.json", **odd)
    assert read_config(copied) == read_config(model_folder)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_ids_that_no_text_can_end_with_are_left_out(file, copied):
    for name in ("config.json", "generation_config.json"):
        edit_json(copied / name, eos_token_id=None)
    for given, read in ((-1, ()), (300, ()), ([7, 300, 299], (7, 299))):
        edit_json(copied / file, eos_token_id=given)
        assert read_config(copied).eos_ids == read


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"top_k": -1}, SENSIBLE),
        ({"top_k": 0}, SENSIBLE),
        ({"top_k": 7}, replace(SENSIBLE, top_k=7)),
        ({"temperature": 1e-5, "top_p": 7}, GREEDY),
        ({"temperature": 0, "repetition_penalty": 1.5}, replace(GREEDY, repetition_penalty=1.5)),
        ({"do_sample": False, "temperature": -3}, GREEDY),
    ],
    ids=str,
)
def test_what_switches_a_filter_off_is_understood(given, read, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, **given}))
    assert read_sampling(tmp_path) == read
