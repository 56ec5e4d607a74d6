"""The embedded model is whole, small enough, and what its card says."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from conftest import FABLE
from test_model import ours, random_ids

CARD = (FABLE / "README.md").read_text()


def test_the_weights_are_those_of_the_card():
    data = (FABLE / "model.safetensors").read_bytes()
    assert len(data) <= 16_000_000
    assert hashlib.sha256(data).hexdigest() in CARD
    assert f"{len(data):,} bytes" in CARD


def test_the_card_tells_the_sampling_defaults_and_the_sizes():
    generation = json.loads((FABLE / "generation_config.json").read_text())
    assert f"temperature {generation['temperature']}" in CARD
    assert f"top-p {generation['top_p']}" in CARD
    config = ours(FABLE).config
    assert f"{config.n_parameters:,} parameters" in CARD
    assert config.n_ctx >= 512
    assert re.search(rf"{config.n_layer} layers, {config.n_head} heads", CARD)


def test_transformers_opens_the_folder_with_the_same_logits():
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(FABLE, dtype=torch.float32).eval()
    model = ours(FABLE)
    ids = random_ids(model.config, length=512)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-3, rtol=0)


def test_its_tokenizer_opens_in_transformers_and_starts_with_end_of_text():
    from transformers import PreTrainedTokenizerFast

    from llmcli.tokenizer import Tokenizer

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(FABLE / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(FABLE)
    text = "Once upon a time, Zoë's cat — naïve — said: “Hi!”\n"
    assert theirs(text)["input_ids"] == [0, *tokenizer.encode(text)]
    assert list(tokenizer.prefix_ids) == [0]
    assert len(tokenizer) == 4096


def test_the_samples_on_the_card_are_what_it_writes(llmcli):
    samples = re.findall(r"    llmcli generate (.*?) --seed (\d+)\n\n((?:> .*\n|>\n)+)", CARD)
    assert len(samples) == 3
    for prompt, seed, quoted in samples:
        told = "\n".join(line[2:] for line in quoted.splitlines())
        made = llmcli("generate", json.loads(prompt), "--seed", seed).stdout
        # Another processor may round another way and turn at some token; not before it has begun.
        assert made[:60].split() == told[:60].split()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_its_files_are_json(name):
    assert isinstance(json.loads((FABLE / name).read_text()), dict)
