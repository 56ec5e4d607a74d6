"""The budget's numbers are those of the real thing."""

from __future__ import annotations

import pytest
from test_model import VARIANTS, ours

from llmcli.budget import available_nbytes, budget, check_fits
from llmcli.errors import ResourceError


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_and_cache_are_counted_exactly(name, save_gpt2):
    model = ours(save_gpt2(**VARIANTS[name])[0])
    config = model.config
    assert config.n_parameters == sum(weight.numel() for weight in model.parameters())
    cache = model.bfloat16().new_cache(3, 20)
    real = cache.keys.nbytes + cache.values.nbytes
    plan = budget(config, "bfloat16", batch=3, n_tokens=20)
    assert plan.cache == real
    assert plan.weights == 2 * config.n_parameters


def test_a_run_that_fits_passes_and_one_that_does_not_tells_both_numbers(save_gpt2, monkeypatch):
    config = ours(save_gpt2()[0]).config
    available = available_nbytes()
    assert available is None or available > 1 << 20
    monkeypatch.setattr("llmcli.budget.available_nbytes", lambda: 400 << 20)
    check_fits(budget(config, "float32"))
    with pytest.raises(ResourceError, match=r"This needs .* GiB .*; 400 MiB are available"):
        check_fits(budget(config, "float32", batch=200_000))
    whole, step = (budget(config, "float32", 9, 20, at_once) for at_once in (None, 2))
    assert whole.activations > step.activations
    assert whole.cache == step.cache
    monkeypatch.setattr("llmcli.budget.available_nbytes", lambda: None)
    check_fits(budget(config, "float32", batch=200_000))  # nobody knows; the system will tell


def test_files_that_a_container_has_read_count_as_memory_to_be_had(tmp_path, monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n",
        "/sys/fs/cgroup/memory.max": "1000\n",
        "/sys/fs/cgroup/memory.current": "900\n",
        "/sys/fs/cgroup/memory.stat": "anon 200\ninactive_file 450\nactive_file 250\n",
    }
    for name, text in files.items():
        (tmp_path / name[1:].replace("/", "-")).write_text(text)
    monkeypatch.setattr("llmcli.budget.Path", lambda name: tmp_path / name[1:].replace("/", "-"))
    assert available_nbytes() == 1000 - 200
    (tmp_path / "sys-fs-cgroup-memory.max").write_text("max\n")
    assert available_nbytes() == 8_000_000 << 10
