"""The benchmarks' own arithmetic, and the formats that they write for other engines."""

from __future__ import annotations

import json
import math
from unittest.mock import Mock

import bench_floors as floors
import bench_generate
import bench_models as models
import numpy as np
import pytest
import torch
from bench_engines import Absent, Given, Ours, needed, run
from bench_quality import mean_kl
from conftest import FABLE
from test_model import ours

from llmcli.checkpoint import read_checkpoint
from llmcli.config import read_config
from llmcli.gpt.weights import to_checkpoint


def test_a_decode_step_in_float32_reads_every_parameter_but_positions_and_all_of_the_cache():
    config, stored = read_config(FABLE), floors.STORED["ours-float32"]
    read = config.n_parameters - config.n_ctx * config.n_embd
    assert floors.weight_nbytes(config, stored) == 4 * read
    kv = floors.step_nbytes(config, stored, 10) - floors.step_nbytes(config, stored, 0)
    assert kv == 10 * 2 * config.n_layer * config.n_embd * 4


def test_the_floor_of_gpt2_in_16_bits_is_that_of_its_124_million_weights(tmp_path):
    raw = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768,
           "n_layer": 12, "n_head": 12, "activation_function": "gelu_new"}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    nbytes = floors.step_nbytes(read_config(tmp_path), floors.STORED["llamacpp-f16"], 0)
    assert nbytes == pytest.approx(2 * 123.65e6, rel=0.002)
    assert floors.floor_tok_s(nbytes, 34e9) == pytest.approx(137, abs=1)


def test_the_first_token_is_the_prefill_s_and_not_counted_as_a_decode_step():
    times = floors.Times([0.5, 0.6, 0.7])
    assert times.first_s == 0.5
    assert times.decode_tok_s == pytest.approx(10)


def test_a_slow_round_slows_both_and_leaves_the_ratio():
    assert floors.ratio([20, 2, 20], [10, 1, 10]) == 2
    rows = floors.ratio_table({"ours-a": [20, 2], "peer": [10, 1]}).splitlines()
    assert rows[1].split() == ["ours-a", "2.00x"]
    assert floors.ratio_table({"ours-a": [2.0], "peer": [1.0]}, False).endswith("0.50x")
    assert floors.ratio_table({"ours-a": [2.0]}) == ""


def test_columns_of_a_table_are_aligned():
    lines = floors.table(["", "tok/s"], [["a", "1"], ["long", "1,234"]]).splitlines()
    assert lines == ["      tok/s", "a         1", "long  1,234"]


@pytest.mark.parametrize(
    ("value", "told"),
    [(1234.5, "1,234"), (12.34, "12.3"), (1.234, "1.23"), (0.001234, "0.00123")],
)
def test_a_number_has_the_digits_that_count(value, told):
    assert floors.number(value) == told


def test_every_tensor_of_gpt2_has_a_name_of_its_own_in_gguf():
    names = list(read_checkpoint(FABLE))
    told = [models.gguf_name(name) for name in names]
    assert len(set(told)) == len(names)
    assert models.gguf_name("transformer.h.11.attn.c_proj.bias") == "blk.11.attn_output.bias"
    assert models.gguf_name("wpe.weight") == "position_embd.weight"
    with pytest.raises(KeyError):
        models.gguf_name("transformer.h.0.attn.rotary.weight")


def test_random_weights_are_seeded_and_fill_a_gpt2(tmp_path):
    shape = models.Shape(n_layer=2, n_head=2, n_embd=8)
    models.write_hf(tmp_path / "a", shape, seed=1)
    model = ours(tmp_path / "a")
    again = dict(models.random_weights(shape, seed=1))
    for name, weight in to_checkpoint(dict(model.named_parameters())).items():
        torch.testing.assert_close(weight, again[name], rtol=0, atol=0)
    other = dict(models.random_weights(shape, seed=2))
    assert not torch.equal(again["transformer.wte.weight"], other["transformer.wte.weight"])


def test_the_dummy_tokenizer_is_one_that_ours_and_tokenizers_read_alike(tmp_path):
    from tokenizers import Tokenizer as Reference

    from llmcli.tokenizer import Tokenizer

    (tmp_path / "tokenizer.json").write_text(json.dumps(models.dummy_tokenizer()))
    text = "Once upon a time, ä 語 \U0001f600\n"
    ids = Tokenizer.from_folder(tmp_path).encode(text)
    assert ids == Reference.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids


def test_kl_is_that_of_two_distributions_by_hand():
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]]) + 3  # logits: a constant changes nothing
    by_hand = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert mean_kl([(p, q)]) == pytest.approx(by_hand)
    assert mean_kl([(p, p), (q, q)]) == 0


def test_one_pass_and_token_by_token_are_told_apart_and_agree():
    engine = Ours("float32", Given(FABLE, FABLE, threads=1))
    ids = [0, 5, 9, 300]
    both = engine.logits(ids, stepwise=False), engine.logits(ids, stepwise=True)
    np.testing.assert_allclose(*both, atol=1e-4)
    times, steps = run(engine, [ids, ids], new=3)
    assert [len(row) for row in steps] == [2, 2, 2]
    assert len(times) == 3
    assert sorted(times) == times


def test_an_engine_that_is_not_installed_is_absent_by_name():
    with pytest.raises(Absent, match="no_such_engine is not installed"):
        needed("no_such_engine")


def test_an_engine_whose_process_ends_is_absent_with_its_last_words(tmp_path):
    with pytest.raises(Absent, match=r"its process ended with 1: .*nowhere"):
        bench_generate.Worker(
            "ours-float32",
            {"folder": str(tmp_path / "nowhere"), "models": "", "threads": 1, "device": "cpu"},
        )


def test_an_engine_that_ends_in_the_middle_is_named():
    told = {"folder": str(FABLE), "models": "", "threads": 1, "device": "cpu"}
    workers = {"bandwidth": Mock(ask=lambda: {"bandwidth": 1.0}),
               "ours-float32": bench_generate.Worker("ours-float32", told)}  # fmt: skip
    workers["ours-float32"].process.kill()
    workers["ours-float32"].process.wait()
    given = Mock(measure=["decode"], prompt=[2], new=2)
    with pytest.raises(SystemExit, match="ours-float32: its process ended with -9"):
        bench_generate.one_round(workers, bench_generate.Results(read_config(FABLE)), given)


def test_a_worker_answers_with_times_ids_and_its_peak_of_memory():
    worker = bench_generate.Worker(
        "ours-float32", {"folder": str(FABLE), "models": "", "threads": 1, "device": "cpu"}
    )
    answer = worker.ask(prompts=[[0, 5]], new=2)
    worker.close()
    assert len(answer["times"]) == len(answer["ids"]) == 2
    assert answer["peak_mib"] > worker.told["import_mib"] > 0
