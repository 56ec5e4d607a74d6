"""`head`, `circuits` and `why`: held against `transformers`, plain torch, and a pencil."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal

import pytest
import torch
from conftest import FABLE
from test_cli import assert_fails
from test_inspection_views import IDS, pair, run_of, theirs_of  # noqa: F401 (pair is a fixture)

from llmcli.config import read_config
from llmcli.gpt.model import GPT
from llmcli.gpt.weights import load_model
from llmcli.inspection import attribution, circuits, head, lens, patching, why
from llmcli.inspection.ask import Ask
from llmcli.inspection.catalogue import VIEWS
from llmcli.inspection.intervention import filled
from llmcli.inspection.next import attention_row
from llmcli.inspection.why import Stage, entered
from llmcli.render.drawing import Canvas
from llmcli.render.views.why import draw as draw_why

PROMPT = "Tom and Lily went to the park. Tom saw a big dog. Lily was scared, but Tom"
D, H, C = 8, 4, 32  # of the random model


def rounded(value, places):
    return str(value.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP) + 0)


def dot(a, b):
    return sum((x * y for x, y in zip(a, b, strict=True)), Decimal(0))


def vectors_in(text):
    """The vectors of a part of the picture: the text above each, and its numbers as printed."""
    found, title = [], ""
    for line in text.splitlines():
        if re.match(r"^ +\d+(  *-?\d+\.\d+)+$", line):
            if not found or found[-1][0] != title:
                found.append((title, []))
            found[-1][1].extend(Decimal(x) for x in line.split()[1:])
        else:
            title = line
    return found


# --- head: the picture, with a pencil ------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("more", [["--rows", 3], ["--rows", 30, "--position", 6]], ids=str)
def test_what_is_printed_multiplies_out_to_the_last_digit(columns, more, llmcli, monkeypatch):
    """Read from the screen alone: q and k to scores, weights and values to z, z to the stream."""
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = llmcli("inspect", PROMPT, "--view", "head", "--layer", 6, "--head", 2, *more,
                   "--color", "always").stdout  # fmt: skip
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    parts = re.split(r"\n\n\d\. ", plain.split("\n\n  measured")[0])[1:]
    (_, q), keys = vectors_in(parts[0])[0], vectors_in(parts[1])
    divisor, greatest = re.search(r"/ (\S+); e\^\(score - (\S+)\)", parts[2]).groups()
    rows = [re.findall(r"-?\d+\.\d{4,}|masked", line) for line in parts[2].splitlines()[2:]]
    rows, other, total = [r for r in rows if len(r) == 5], [r for r in rows if len(r) == 2], \
        next(r[0] for r in rows if len(r) == 1)  # fmt: skip
    assert len(q) == 64
    assert len(keys) == len(rows) >= 3
    exps, weights = Decimal(0), []
    for (title, k), (product, score, exp, weight, own) in zip(keys, rows, strict=True):
        assert title.endswith(f"q · k = {product}")
        assert product == rounded(dot(q, k), 4)
        if score == "masked":
            assert exp == weight == "0.000000"
            continue
        assert score == rounded(Decimal(product) / Decimal(divisor), 4)
        assert exp == rounded((Decimal(score) - Decimal(greatest)).exp(), 6)
        assert weight == rounded(Decimal(exp) / Decimal(total), 6)
        assert float(weight) == pytest.approx(float(own), abs=1e-3)
        exps, weights = exps + Decimal(exp), [*weights, Decimal(weight)]
    assert exps + sum(Decimal(exp) for exp, _ in other) == Decimal(total)
    *values, (_, z) = vectors_in(parts[3])
    rest = values.pop()[1] if other else [Decimal(0)] * 64
    assert [f"{weight:.6f} ×" in title for (title, _), weight in zip(values, weights, strict=True)]
    for d in range(64):
        mixed = dot(weights, [v[d] for _, v in values]) + rest[d]
        assert str(z[d]) == rounded(mixed, 4), d
    ((_, w_out),) = vectors_in(parts[4])
    assert f"z · W_O = {rounded(dot(z, w_out), 4)} " in parts[4]


def test_halves_are_rounded_away_from_zero_and_no_number_exceeds_seven_digits():
    for text, places, expected in [
        ("0.00005", 4, "0.0001"), ("-0.00005", 4, "-0.0001"), ("-0.00004", 4, "0.0000"),
        ("1234.56789", 4, "1234.568"), ("12345678.9", 4, "12345679"), ("0", 3, "0.000"),
    ]:  # fmt: skip
        assert str(head.rounded(Decimal(text), places)) == expected


def test_sums_over_many_places_keep_to_seven_digits():
    torch.manual_seed(1)
    q, k, v = torch.randn(D), 0.1 * torch.randn(300, D), torch.randn(300, D)
    made = head.worked(q, k, v, [True] * 300, Decimal("2.828427"))
    assert made.total > 100
    assert len(made.total.as_tuple().digits) == 7
    assert head.rounded(sum(made.exps), 6) == made.total
    weights = ((k.double() @ q.double()) / math.sqrt(D)).softmax(-1)
    assert [float(w) for w in made.weights] == pytest.approx(weights.tolist(), abs=1e-5)
    assert [float(x) for x in made.z] == pytest.approx((weights @ v.double()).tolist(), abs=2e-3)


# --- head: the model's own numbers ---------------------------------------------------------------


def of_transformers(theirs, out, layer, number):
    """q, k, v (T, D) and what the head writes (T, C), from their weights in plain torch."""
    block = theirs.transformer.h[layer]
    with torch.inference_mode():
        q, k, v = block.attn.c_attn(block.ln_1(out.hidden_states[layer][0])).split(C, dim=-1)
        some = slice(number * D, (number + 1) * D)
        z = out.attentions[layer][0, number] @ v[:, some]
        return q[:, some], k[:, some], v[:, some], z @ block.attn.c_proj.weight[some]


@pytest.mark.parametrize(("layer", "number", "position"), [(0, 3, 9), (1, 2, 4), (2, 0, 0)])
def test_a_head_shows_the_numbers_of_transformers_rounded(pair, layer, number, position):  # noqa: F811
    run, out, theirs = pair
    q, k, v, written = of_transformers(theirs, out, layer, number)
    made = head.view(run, Ask(position=position, layer=layer, head=number))
    close = {"abs": 0.0005 + 1e-4}
    assert made.q == pytest.approx(q[position].tolist(), **close)
    pattern = out.attentions[layer][0, number, position]
    assert [key.position for key in made.keys] == list(range(len(IDS)))
    for i, key in enumerate(made.keys):
        assert key.k == pytest.approx(k[i].tolist(), **close)
        assert key.v == pytest.approx(v[i].tolist(), **close)
        assert key.model_weight == pytest.approx(float(pattern[i]), abs=1e-5)
        assert abs(key.weight - float(pattern[i])) <= made.weight_error + 1e-6 < 0.01
        assert key.visible == (i <= position)
        if key.visible:
            own = float(q[position] @ k[i]) / math.sqrt(D)
            assert key.model_score == pytest.approx(own, abs=1e-4)
            assert abs(key.score - own) <= made.score_error + 1e-4 < 0.01
        else:
            assert (key.score, key.model_score, key.weight) == (None, None, 0)
    assert made.norm == pytest.approx(float(written[position].norm()), rel=1e-4)
    assert made.component == int(written[position].abs().argmax())
    own = float(written[position, made.component])
    assert made.model_written == pytest.approx(own, abs=1e-4)
    assert made.written == pytest.approx(own, abs=0.02)
    stream = out.hidden_states[layer][0, position].norm()
    assert made.stream_norm == pytest.approx(float(stream), rel=1e-5)


def test_pushes_are_what_logits_lose_without_the_head_at_the_same_scale(pair):  # noqa: F811
    run, out, theirs = pair
    made = head.view(run, Ask(position=7, layer=1, head=2))
    written = of_transformers(theirs, out, 1, 2)[3][7].double()
    final = lens.stream_after(run)["2"][7].double()
    norm, unembed = theirs.transformer.ln_f, theirs.lm_head.weight.detach().double()
    scale = (final.var(unbiased=False) + norm.eps).sqrt()

    def logits(x):
        return unembed @ ((x - x.mean()) / scale * norm.weight.detach().double())

    lost = logits(final) - logits(final - written)
    lost = lost - lost.mean()
    assert [push.token.id for push in made.pushes[:5]] == lost.topk(5).indices.tolist()
    assert [push.token.id for push in made.pushes[5:]] == (-lost).topk(5).indices.tolist()
    for push in made.pushes:
        assert push.adds == pytest.approx(float(lost[push.token.id]), abs=1e-4)


def test_rows_are_the_keenest_keys_and_change_no_other_number(pair):  # noqa: F811
    run = pair[0]
    every = head.view(run, Ask(position=8, layer=2, head=1))
    some = head.view(run, Ask(position=8, layer=2, head=1, rows=4))
    best = sorted(every.keys[:9], key=lambda key: -key.score)[:4]
    assert [key.position for key in some.keys] == sorted(key.position for key in best)
    assert replace(some, keys=()) == replace(every, keys=())


def test_a_place_that_is_knocked_out_is_masked(llmcli, model_folder):
    shown = llmcli("inspect", "Once upon a time", "-m", model_folder, "--view", "head", "--layer",
                   1, "--head", 0, "--knockout", "L1.H0: -1 -> 2").stdout  # fmt: skip
    table = shown.split("# table keys\n")[1].split("# table")[0].splitlines()
    header, *rows = [line.split("\t") for line in table]
    rows = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["visible"] for row in rows].count("0") == 1
    assert (rows[2]["visible"], rows[2]["score"], float(rows[2]["weight"])) == ("0", "", 0)
    assert "The run is changed" in shown


# --- circuits ------------------------------------------------------------------------------------


def matrices(theirs, layer, number):
    """W_Q, W_K, W_V (C, D) and W_O (D, C) of their head, and the biases of q, k, v."""
    attn = theirs.transformer.h[layer].attn
    some = slice(number * D, (number + 1) * D)
    weights = [w[:, some].double() for w in attn.c_attn.weight.detach().split(C, dim=1)]
    biases = [b[some].double() for b in attn.c_attn.bias.detach().split(C)]
    return weights, attn.c_proj.weight.detach()[some].double(), biases


@pytest.mark.parametrize("chunk", [1, 97 * 4 * 10, 1 << 20])
def test_token_pairs_are_those_of_the_whole_matrices(pair, monkeypatch, chunk):  # noqa: F811
    monkeypatch.setattr(circuits, "CHUNK_NBYTES", chunk)
    run, _, theirs = pair
    (w_q, w_k, w_v), w_o, (b_q, b_k, _) = matrices(theirs, 1, 2)
    with torch.inference_mode():
        x = theirs.transformer.h[1].ln_1(theirs.transformer.wte.weight).double()
        norm, unembed = theirs.transformer.ln_f, theirs.lm_head.weight.double()
        qk = (x @ w_q + b_q) @ (x @ w_k + b_k).T / math.sqrt(D)
        writes = x @ w_v @ w_o
        ov = ((writes - writes.mean(-1, keepdim=True)) * norm.weight.double()) @ unembed.T
    qk = qk - qk.mean(dim=1, keepdim=True)
    ov = ov - ov.mean(dim=1, keepdim=True)
    ov = ov - ov.mean(dim=0)
    made = circuits.view(run, Ask(position=0, layer=1, head=2, rows=6))
    pairs = [(row.query.id, row.key.id, row.score) for row in made.reads]
    assert_largest(pairs, qk)
    assert_largest([(row.source.id, row.output.id, row.adds) for row in made.writes], ov)
    one = circuits.view(run, Ask(position=0, layer=1, head=2, rows=6, token=44))
    assert {row.query.id for row in one.reads} == {row.source.id for row in one.writes} == {44}
    assert [row.key.id for row in one.reads] == qk[44].topk(6).indices.tolist()
    assert [row.output.id for row in one.writes] == ov[44].topk(6).indices.tolist()
    held = circuits.tensors(run, Ask(position=0, layer=1, head=2))
    whole = held["qk_left"] @ held["qk_right"].T
    torch.testing.assert_close(whole.double(), qk, atol=1e-4, rtol=1e-4)


def assert_largest(pairs, whole):
    top = whole.flatten().topk(6)
    assert [row * len(whole) + column for row, column, _ in pairs] == top.indices.tolist()
    assert [value for *_, value in pairs] == pytest.approx(top.values.tolist(), rel=1e-4)


def test_qk_of_the_first_layer_is_what_the_model_scores_without_positions(pair):  # noqa: F811
    """Where nothing but the tokens is in the stream, the circuit is the computation itself."""
    run = replace(pair[0], patch={"pos_embed": filled(None, None)})
    scores = run.record("0.scores")["0.scores"]  # (H, T, T)
    left, right = circuits.factors_of(run.model, 0, 3).qk
    ids = run.ids_tensor
    made = left[ids] @ right[ids].T
    below = torch.ones(len(ids), len(ids)).tril().bool()
    apart = (scores[3] - made)[9]  # the query's mean: the same for every key
    torch.testing.assert_close(apart, apart[:1].expand(10), atol=1e-4, rtol=0)
    pattern = made.masked_fill(~below, -math.inf).softmax(dim=-1)
    seen = run.record("0.pattern")["0.pattern"][3]
    torch.testing.assert_close(pattern, seen, atol=1e-5, rtol=0)


def test_composition_scores_are_those_of_the_whole_matrices(pair):  # noqa: F811
    run, _, theirs = pair
    made = {(kind, at, h): score for kind, at, h, score in circuits.compositions(run.model, 2, 1)}
    assert len(made) == 3 * 2 * H

    def folded(layer, number):
        (w_q, w_k, w_v), w_o, _ = matrices(theirs, layer, number)
        gain = theirs.transformer.h[layer].ln_1.weight.detach().double()
        fold = (torch.eye(C) - 1 / C).double() @ torch.diag(gain)
        return fold @ w_q, fold @ w_k, fold @ w_v, w_o

    w_q, w_k, w_v, w_o = folded(2, 1)
    qk, ov = w_q @ w_k.T, w_v @ w_o  # a row vector x: x qk y^T is a score, x ov is what is written
    for (kind, at, number), score in made.items():
        _, _, earlier_v, earlier_o = folded(at, number)
        first = earlier_v @ earlier_o
        later = {"Q": qk, "K": qk.T, "V": ov}[kind]
        expected = (first @ later).norm() / (first.norm() * later.norm())
        assert score == pytest.approx(float(expected), rel=1e-6)


def test_chance_is_the_root_mean_square_of_heads_turned_at_random():
    torch.manual_seed(0)
    read, written = torch.randn(C, C), torch.randn(C, D) @ torch.randn(D, C)
    squares = []
    for _ in range(2000):
        turn = torch.linalg.qr(torch.randn(C, C)).Q
        squares.append(float((read @ turn @ written).norm() / (read.norm() * written.norm())) ** 2)
    assert sum(squares) / len(squares) == pytest.approx(1 / C, rel=0.02)


def test_fables_copying_head_reads_what_its_previous_token_head_writes():
    run = run_of(load_model(FABLE, read_config(FABLE)), [5])
    best = circuits.view(run, Ask(position=0, layer=6, head=3)).compositions[0]
    assert (best.kind, best.layer, best.head) == ("K", 4, 1)


# --- why -----------------------------------------------------------------------------------------


def test_leaving_a_token_out_is_what_transformers_says_without_it(pair):  # noqa: F811
    run, out, theirs = pair
    p, token, rival = 7, 9, 44
    made = why.view(run, Ask(position=p, token=token, versus=rival, rows=5))
    mean = torch.stack(out.attentions)[:, 0, :, p].mean(dim=(0, 1))
    candidates = mean[:p].topk(5)
    assert {row.position for row in made.removals} == set(candidates.indices.tolist())
    plain = out.logits[0, p].log_softmax(-1)
    for row in made.removals:
        ids = [id for i, id in enumerate(IDS[: p + 1]) if i != row.position]
        logits = theirs_of(theirs, ids).logits[0, -1]
        logprobs = logits.log_softmax(-1)
        change = float(logprobs[token] - plain[token]) / math.log(2)
        assert row.attention == pytest.approx(float(mean[row.position]), abs=1e-5)
        assert row.change_bits == pytest.approx(change, abs=1e-3)
        assert row.prob == pytest.approx(float(logprobs[token].exp()), abs=1e-5)
        assert row.rank == int((logits > logits[token]).sum())
        assert row.lead == pytest.approx(float(logits[token] - logits[rival]), abs=1e-4)
        assert row.top.id == int(logits.argmax())
        assert row.top_prob == pytest.approx(float(logprobs.max().exp()), abs=1e-5)
    sizes = [abs(row.change_bits) for row in made.removals]
    assert sizes == sorted(sizes, reverse=True)
    assert (made.n_candidates, made.n_batches) == (p, 1)


def test_several_batches_say_what_one_does(pair, monkeypatch):  # noqa: F811
    run = pair[0]
    one = why.view(run, Ask(position=9, token=9))
    monkeypatch.setattr("llmcli.inspection.run.BATCH_TOKENS", 20)
    several = why.view(run, Ask(position=9, token=9))
    assert (one.n_batches, several.n_batches) == (1, 4)
    assert [r.position for r in several.removals] == [r.position for r in one.removals]
    changes = [row.change_bits for row in one.removals]
    assert [row.change_bits for row in several.removals] == pytest.approx(changes, abs=1e-4)


def test_the_report_agrees_with_lens_and_attribution(pair):  # noqa: F811
    run, out, _ = pair
    made = why.view(run, Ask(position=6, token=9))
    rows = [row for row in lens.view(run, Ask(position=6, token=9)).rows if row.position == 6]
    assert [(s.after, s.rank) for s in made.layers] == [(r.after, r.token_rank) for r in rows]
    assert [s.prob for s in made.layers] == pytest.approx([r.token_prob for r in rows], abs=1e-6)
    logits = out.logits[0, 6]
    assert made.rival.id == int(logits.argmax())
    assert made.lead == pytest.approx(float(logits[9] - logits.max()), abs=1e-4)
    account = attribution.view(run, Ask(position=6, token=9, versus=made.rival.id))
    values = {part.part: part.value for part in account.parts}
    sides = [*made.parts_for, *made.parts_against]
    assert all(values[side.part] == side.adds for side in sides)
    assert made.rest + sum(side.adds for side in sides) == pytest.approx(made.lead, abs=1e-3)
    moving = [v for name, v in values.items() if re.match(r"L\d\.(H\d|mlp$)", name)]
    assert made.parts_for[0].adds == max(moving)
    assert made.parts_against[0].adds == min(moving)


def test_the_report_reads_the_prompt_once(pair, monkeypatch):  # noqa: F811
    read = []
    stream = GPT.stream
    monkeypatch.setattr(GPT, "stream", lambda *a: read.append(a[1].shape) or stream(*a))
    why.view(pair[0], Ask(position=9, rows=3))
    assert read == [(1, len(IDS)), (3, 9)]


def test_the_likeliest_token_is_held_against_the_second(pair):  # noqa: F811
    run, out, _ = pair
    made = why.view(run, Ask(position=6))
    assert [made.token.id, made.rival.id] == out.logits[0, 6].topk(2).indices.tolist()
    assert (made.rank, made.rival_rank) == (0, 1)


@pytest.mark.parametrize(
    ("ranks", "since"),
    [([50, 9, 3, 0], "0"), ([50, 9, 12, 0], "2"), ([4, 0, 0, 0], "embed"), ([0, 0, 0, 10], None)],
    ids=str,
)
def test_a_token_has_entered_where_it_stays(ranks, since):
    names = ["embed", "0", "1", "2"]
    stages = [Stage(name, rank, 0.1) for name, rank in zip(names, ranks, strict=True)]
    assert entered(stages, 10) == since


def test_there_is_nothing_to_leave_out_of_one_token_or_of_a_changed_run(pair):  # noqa: F811
    run = pair[0]
    assert why.view(run, Ask(position=0)).removals == ()
    prefixed = why.view(run_of(run.model, n_prefix=3), Ask(position=9, rows=99))
    assert {row.position for row in prefixed.removals} == set(range(3, 9))
    changed = why.view(replace(run, patch={"1.mlp_out": filled(None, None)}), Ask(position=9))
    assert changed.removals == ()
    assert why.NOT_REMOVED in changed.notes
    assert changed.n_candidates is None
    assert "none: the run is changed" in draw_why(changed, Canvas(80, False)).plain


def test_attention_of_the_candidates_is_the_mean_of_all_heads(pair):  # noqa: F811
    run = pair[0]
    seen = run.record("*.q", "*.k")
    mean = torch.cat([attention_row(run, seen, layer, 9) for layer in range(3)]).mean(dim=0)
    for row in why.view(run, Ask(position=9, rows=9)).removals:
        assert row.attention == pytest.approx(float(mean[row.position]), abs=1e-6)


# --- as their users meet them --------------------------------------------------------------------


def test_the_cost_is_said_before_it_is_spent(llmcli, monkeypatch):
    common = ["inspect", PROMPT, "--view", "why", "--token", " was"]
    assert llmcli(*common, "--quiet").stderr == ""
    said = llmcli(*common).stderr
    # 8 layers of 12 C^2 weights and what is small beside them, twice, for 21 + 160 tokens.
    assert said == "--view why: 21 tokens, then 8 × 20 without one (1 batch): 2.3 GFLOP.\n"
    monkeypatch.setattr(patching, "_patched", stop)
    said = llmcli("inspect", "--clean", 3 * PROMPT, "--corrupt", 3 * PROMPT.replace("Tom", "Ben"),
                  "--view", "patching", "--token", " he", "--versus", " she").stderr  # fmt: skip
    assert said.startswith("--view patching: 8 layers × (61 places + 4 heads) × 61 tokens: ")
    assert 400 < float(said.split()[-2]) < 420  # the same weights, for 520 times 61 tokens
    monkeypatch.setattr(circuits, "factors_of", stop)
    with pytest.raises(Stopped):
        circuits_of(llmcli, catch=False)
    said = circuits_of(llmcli).stderr
    assert said == "--view circuits: 2 × 4096 × 4096 entries, 4.8 GFLOP, 64 MiB held at once.\n"


class Stopped(Exception):
    pass


def stop(*_):
    raise Stopped


def circuits_of(llmcli, catch=True):
    result = llmcli("inspect", "--view", "circuits", "--layer", 6, "--head", 3)
    if not catch and isinstance(result.exception, Stopped):
        raise result.exception
    return result


@pytest.mark.parametrize("view", ["head", "circuits"])
def test_a_view_of_one_head_asks_which(view, llmcli, model_folder):
    prompt = ["Once"] if VIEWS[view].prompt else []
    common = ["inspect", *prompt, "-m", model_folder, "--view", view]
    for more in ([], ["--layer", 1], ["--head", 1]):
        assert_fails(llmcli(*common, *more), 2, "needs to know which.*\n.*--layer 0 --head 1")


def test_why_is_the_same_text_in_a_pipe_as_on_a_terminal(llmcli, model_folder, monkeypatch):
    monkeypatch.setitem(os.environ, "COLUMNS", "80")
    common = [
        "inspect",
        'a "quoted" 大きな \x1b[31m end',
        "-m",
        model_folder,
        "--view",
        "why",
        "-q",
    ]
    piped = llmcli(*common).stdout
    assert "\x1b" not in piped
    colored = llmcli(*common, "--color", "always").stdout
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == piped
