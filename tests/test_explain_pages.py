"""The guided walk's figures, page by page: recomputed from the weights and by `transformers`."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import FABLE
from safetensors.torch import load_file
from test_inspection_views import theirs_of
from test_model import ours

from llmcli.inspection import explain
from llmcli.inspection.ask import Ask
from llmcli.inspection.run import Run
from llmcli.inspection.walk.after import chat, repeating
from llmcli.inspection.walk.run import Walk
from llmcli.tokenizer import Tokenizer

TEXT = "Once upon a time, there was a little girl named Lily. One day, she saw a"
C, H, D, LAYERS, V = 256, 4, 64, 8, 4096  # width, heads, width of a head, blocks, vocabulary


@pytest.fixture(scope="module")
def ref():
    """What others say of the prompt: ids and pieces, weights, hidden states, attention, logits."""
    from tokenizers import Tokenizer as Theirs
    from transformers import GPT2LMHeadModel

    cut = Theirs.from_file(str(FABLE / "tokenizer.json")).encode(TEXT)
    model = GPT2LMHeadModel.from_pretrained(FABLE, dtype=torch.float32).eval()
    out = theirs_of(model, cut.ids)
    weights = load_file(FABLE / "model.safetensors").items()
    return SimpleNamespace(
        ids=cut.ids,
        pieces=[TEXT[start:end].encode() for start, end in cut.offsets],
        w={name.removeprefix("transformer."): value.float() for name, value in weights},
        model=model,
        out=out,
        logits=out.logits[0, -1],
        best=out.logits[0, -1].argsort(descending=True).tolist(),
        probs=out.logits[0, -1].softmax(-1),
        last=len(cut.ids) - 1,
    )


def run_of_text():
    tokenizer = Tokenizer.from_folder(FABLE)
    prefix = list(tokenizer.prefix_ids)
    ids = [*prefix, *tokenizer.encode(TEXT)]
    return Run(ours(FABLE), ids, tokenizer.token_bytes, n_prefix=len(prefix))


@pytest.fixture(scope="module")
def facts():
    """What the walk says of the same prompt, by topic."""
    run = run_of_text()
    pages = explain.view(run, Ask(position=len(run.ids) - 1)).pages
    return {page.topic: page.facts for page in pages}


def near(found, expected, atol=1e-4):
    expected = torch.as_tensor(expected, dtype=torch.float32)
    found = torch.as_tensor(found, dtype=torch.float32)
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-4)


def cos(a, b):
    return (a @ b) / (a.norm() * b.norm())


def normed(w, name, x):
    """A layer norm, written out."""
    off = x - x.mean(-1, keepdim=True)
    unit = off / ((off**2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return unit * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    """GPT-2's activation, written out."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def block(w, layer, x, without=None):
    """One block over the stream `x` (T, C), written out; `without` is a head set to zero."""

    def linear(x, name):
        return x @ w[f"h.{layer}.{name}.weight"] + w[f"h.{layer}.{name}.bias"]

    T = len(x)
    s = SimpleNamespace(before=x, normed=normed(w, f"h.{layer}.ln_1", x))
    s.q, s.k, s.v = linear(s.normed, "attn.c_attn").view(T, 3, H, D).permute(1, 2, 0, 3)
    scores = s.q @ s.k.transpose(1, 2) / math.sqrt(D)
    scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
    s.weights = scores.softmax(-1)
    s.z = s.weights @ s.v  # (H, T, D)
    if without is not None:
        s.z[without] = 0
    s.attn = linear(s.z.transpose(0, 1).reshape(T, C), "attn.c_proj")
    s.between = x + s.attn
    s.pre = linear(normed(w, f"h.{layer}.ln_2", s.between), "mlp.c_fc")
    s.post = gelu(s.pre)
    s.mlp = linear(s.post, "mlp.c_proj")
    s.after = s.between + s.mlp
    return s


def unembedded(w, x):
    return normed(w, "ln_f", x) @ w["wte.weight"].T


def test_the_blocks_written_out_here_are_those_of_transformers(ref):
    for layer in range(LAYERS - 1):
        made = block(ref.w, layer, ref.out.hidden_states[layer][0])
        near(made.after, ref.out.hidden_states[layer + 1][0], atol=1e-3)
        near(made.weights, ref.out.attentions[layer][0])


def test_tokens_are_those_that_the_tokenizers_library_cuts(ref, facts):
    f = facts["tokens"]
    assert (f.vocab_size, f.n_tokens, f.n_prefix) == (V, len(ref.ids), 1)
    assert f.n_bytes == len(TEXT.encode())
    assert [p.position for p in f.pieces] == [*range(4), *range(f.n_tokens - 4, f.n_tokens)]
    for piece in f.pieces:
        assert piece.token.id == ref.ids[piece.position]
        assert piece.n_bytes == len(ref.pieces[piece.position])
        if piece.position:  # the prefix has a name, but no bytes of the text
            assert piece.token.text == ref.pieces[piece.position]


def test_vocab_space_has_the_logits_as_coordinates(ref, facts):
    f = facts["vocab_space"]
    assert (f.vocab_size, f.n_embd, f.position) == (V, C, ref.last)
    assert [axis.token.id for axis in f.first] == [0, 1, 2]
    assert f.highest.token.id == int(ref.logits.argmax())
    assert f.lowest.token.id == int(ref.logits.argmin())
    for axis in (*f.first, f.highest, f.lowest):
        near(axis.logit, ref.logits[axis.token.id], atol=1e-3)
    near(f.mean, ref.logits.mean(), atol=1e-3)


def test_vectors_have_the_lengths_dots_and_cosines_of_the_embedding(ref, facts):
    f, table = facts["vectors"], ref.w["wte.weight"]
    for pair in f.pairs:
        a, b = torch.tensor(pair.a), torch.tensor(pair.b)
        found = [pair.length_a, pair.length_b, pair.dot, pair.cosine]
        near(found, torch.stack([a.norm(), b.norm(), a @ b, cos(a, b)]))
    own, id = table[ref.ids[-1]], ref.ids[-1]
    assert (f.n_embd, f.token.id) == (C, id)
    near(f.length, own.norm())
    every = torch.nn.functional.cosine_similarity(table, own[None])
    every[id] = -1
    wanted = [int(every.argmax()), *ref.best[:2], ref.ids[1]]
    assert [o.token.id for o in f.others] == [i for i in dict.fromkeys(wanted) if i != id]
    assert f.others[0].why == "nearest"
    for other in f.others:
        b = table[other.token.id]
        near([other.length, other.dot, other.cosine], [b.norm(), own @ b, cos(own, b)])


def test_lookup_reads_the_row_that_one_hot_times_table_gives(ref, facts):
    f, table = facts["lookup"], ref.w["wte.weight"]
    near(f.row, torch.tensor(f.one_hot) @ torch.tensor(f.matrix))
    row = torch.nn.functional.one_hot(torch.tensor(ref.ids[-1]), V).float() @ table
    near(f.product, row[:4], atol=1e-6)
    near(f.looked_up, table[ref.ids[-1], :4], atol=1e-6)
    assert f.max_difference < 1e-6
    assert (f.vocab_size, f.n_embd, f.n_products) == (*table.shape, table.numel())


def test_projection_keeps_the_share_that_lies_in_the_rows_of_the_query_matrix(ref, facts):
    f = facts["projection"]
    assert f.images == tuple(sum(a * b for a, b in zip(p, f.onto, strict=True)) for p in f.points)
    made = block(ref.w, f.layer, ref.out.hidden_states[f.layer][0])
    columns = slice(f.head * D, (f.head + 1) * D)  # queries come first in c_attn
    to_query = ref.w[f"h.{f.layer}.attn.c_attn.weight"][:, columns].double()  # (C, D)
    x = made.normed[-1].double()
    kept = x @ to_query @ torch.linalg.pinv(to_query)
    near(f.kept, (kept @ kept) / (x @ x))
    assert (f.n_embd, f.head_dim, f.vocab_size) == (C, D, V)
    ids, table = sorted(set(ref.ids)), ref.w["wte.weight"]
    back = [int((table @ table[id]).argmax()) == id for id in ids]
    assert (f.n_tried, f.n_back) == (len(ids), sum(back))


def test_embedding_is_the_tokens_row_plus_the_places_row(ref, facts):
    f = facts["embedding"]
    token, place = ref.w["wte.weight"][ref.ids[-1]], ref.w["wpe.weight"][ref.last]
    assert (f.position, f.vocab_size, f.n_ctx, f.n_embd) == (ref.last, V, 512, C)
    expected = {"token": token, "position": place, "sum": ref.out.hidden_states[0][0, -1]}
    assert [v.name for v in f.vectors] == list(expected)
    for vector in f.vectors:
        near(vector.length, expected[vector.name].norm())
        near(vector.first, expected[vector.name][:4])
    assert f.max_difference < 1e-6


def test_norm_has_the_three_stages_of_a_layer_norm(ref, facts):
    f, x = facts["norm"], ref.out.hidden_states[0][0, -1]
    expected = {
        "before": x,
        "normalised": torch.nn.functional.layer_norm(x, (C,), eps=1e-5),
        "gain and bias": normed(ref.w, "h.0.ln_1", x),
    }
    assert [stage.name for stage in f.stages] == list(expected)
    for stage in f.stages:
        v = expected[stage.name]
        found = [stage.mean, stage.variance, stage.length, *stage.first]
        near(found, [v.mean(), v.var(correction=0), v.norm(), *v[:4]], atol=1e-3)
    assert f.n_norms == len([n for n in ref.w if "ln_" in n and n.endswith("weight")])
    assert (f.position, f.eps, f.n_embd, f.n_layer) == (ref.last, 1e-5, C, LAYERS)
    assert f.max_difference < 1e-4


def keenest(ref):
    """(layer, head, position): the largest weight between the first position and the last."""
    rows = torch.stack([layer[0, :, -1, 1:-1] for layer in ref.out.attentions])
    layer, head, place = (int(i) for i in torch.unravel_index(rows.argmax(), rows.shape))
    return layer, head, place + 1


def test_qkv_are_the_query_key_and_value_of_the_keenest_head(ref, facts):
    f = facts["qkv"]
    assert (f.layer, f.head, f.read_position) == keenest(ref)
    assert f.read_token.id == ref.ids[f.read_position]
    near(f.read_weight, ref.out.attentions[f.layer][0, f.head, -1, f.read_position])
    made = block(ref.w, f.layer, ref.out.hidden_states[f.layer][0])
    assert [v.name for v in f.vectors] == ["query", "key", "value"]
    for vector, value in zip(f.vectors, (made.q, made.k, made.v), strict=True):
        near([vector.length, *vector.first], [value[f.head, -1].norm(), *value[f.head, -1, :4]],
             atol=1e-3)  # fmt: skip
    assert (f.chosen, f.position, f.n_tokens) == (True, ref.last, len(ref.ids))
    assert (f.n_embd, f.n_head, f.head_dim) == (C, H, D)


def test_context_is_the_sum_of_values_times_weights(ref, facts):
    f = facts["context"]
    assert (f.layer, f.head) == keenest(ref)[:2]
    made = block(ref.w, f.layer, ref.out.hidden_states[f.layer][0])
    weights, v = ref.out.attentions[f.layer][0, f.head, -1], made.v[f.head]
    shown = sorted(weights.topk(6).indices.tolist())
    assert [row.position for row in f.rows] == shown
    for row in f.rows:
        i = row.position
        assert row.token.id == ref.ids[i]
        near([row.weight, row.value_length], [weights[i], v[i].norm()])
        near(row.first, weights[i] * v[i, :4])
    hidden = [i for i in range(len(ref.ids)) if i not in shown]
    assert (f.n_others, f.n_seen, f.head_dim) == (len(hidden), len(ref.ids), D)
    near(f.others_weight, weights[hidden].sum())
    near(f.others, (weights[hidden] @ v[hidden])[:4])
    near(f.total, (weights @ v)[:4])
    assert f.max_difference < 1e-4


def test_heads_add_up_to_what_attention_writes(ref, facts):
    f = facts["heads"]
    made = block(ref.w, f.layer, ref.out.hidden_states[f.layer][0])
    out = ref.w[f"h.{f.layer}.attn.c_proj.weight"].view(H, D, C)
    bias = ref.w[f"h.{f.layer}.attn.c_proj.bias"]
    written = [made.z[h, -1] @ out[h] for h in range(H)]
    near(sum(written) + bias, made.attn[-1], atol=1e-3)
    assert [row.head for row in f.rows] == list(range(H))
    for row in f.rows:
        weights = ref.out.attentions[f.layer][0, row.head, -1]
        assert row.position == int(weights.argmax())
        assert row.token.id == ref.ids[row.position]
        near([row.weight, row.length], [weights.max(), written[row.head].norm()], atol=1e-3)
    near([f.bias_length, f.sum_length], [bias.norm(), made.attn[-1].norm()], atol=1e-3)
    assert (f.n_head, f.head_dim, f.n_embd, f.width) == (H, D, C, H * D)
    assert f.max_difference < 1e-4


def test_shortcut_adds_what_attention_and_feed_forward_write(ref, facts):
    f = facts["shortcut"]
    s = block(ref.w, f.layer, ref.out.hidden_states[f.layer][0])
    expected = {"before": s.before, "attention": s.attn, "between": s.between,
                "feed-forward": s.mlp, "after": s.after}  # fmt: skip
    assert [step.name for step in f.steps] == list(expected)
    for step in f.steps:
        x = expected[step.name][-1]
        near([step.length, step.cosine], [x.norm(), cos(x, s.before[-1])], atol=1e-3)
    assert (f.layer, f.position, f.n_terms) == (keenest(ref)[0], ref.last, 2 + 2 * LAYERS)


def test_feed_forward_shows_the_strongest_neurons_before_and_after_the_bend(ref, facts):
    f = facts["feed_forward"]
    s = block(ref.w, f.layer, ref.out.hidden_states[f.layer][0])
    near([p.y for p in f.curve], gelu(torch.tensor([p.x for p in f.curve])))
    assert [n.neuron for n in f.neurons] == s.post[-1].abs().topk(5).indices.tolist()
    for n in f.neurons:
        near([n.before, n.after], [s.pre[-1, n.neuron], s.post[-1, n.neuron]], atol=1e-3)
    assert f.n_below == int((s.pre[-1] < 0).sum())
    near(f.out_length, s.mlp[-1].norm(), atol=1e-3)
    assert (f.layer, f.activation) == (keenest(ref)[0], "gelu_tanh")
    assert (f.n_embd, f.mlp_dim, f.times_as_wide) == (C, s.pre.shape[-1], 4)


def test_blocks_say_what_the_hidden_states_say_through_norm_and_output(ref, facts):
    f, hidden = facts["blocks"], [x[0] for x in ref.out.hidden_states[:-1]]
    hidden.append(block(ref.w, LAYERS - 1, hidden[-1]).after)  # theirs has passed the final norm
    assert [row.after for row in f.rows] == ["embed", *map(str, range(LAYERS))]
    for row, x in zip(f.rows, hidden, strict=True):
        probs = unembedded(ref.w, x[-1]).softmax(-1)
        near([row.length, row.prob], [x[-1].norm(), probs.max()], atol=1e-3)
        assert row.best.id == int(probs.argmax())
    near(f.rows[-1].prob, ref.probs.max())
    assert (f.n_layer, f.position) == (LAYERS, ref.last)


def test_unembed_multiplies_lengths_and_cosine_to_the_logit(ref, facts):
    f, table = facts["unembed"], ref.w["wte.weight"]
    x = ref.out.hidden_states[-1][0, -1]  # after the final norm
    near(f.length, x.norm(), atol=1e-3)
    assert [row.token.id for row in f.rows] == [*ref.best[:4], ref.best[-1]]
    for row in f.rows:
        own = table[row.token.id]
        near([row.length, row.cosine], [own.norm(), cos(own, x)])
        near([row.dot, row.logit], [own @ x, ref.logits[row.token.id]], atol=1e-3)
        near(f.length * row.length * row.cosine, row.logit, atol=1e-3)
    assert f.tied
    assert (f.position, f.n_embd, f.vocab_size) == (ref.last, C, V)


def test_choosing_divides_by_temperature_and_cuts_by_top_k_and_top_p(ref, facts):
    f, logits = facts["choosing"], ref.logits.double()
    probs, ranks = logits.softmax(-1), {id: i for i, id in enumerate(ref.best)}
    sums = probs[ref.best].cumsum(0)
    kept = int((sums < f.top_p).sum()) + 1  # the first at which p is reached is the last that stays
    assert (f.greedy.id, f.n_kept, f.vocab_size) == (ref.best[0], kept, V)
    assert (f.cold_temperature, f.hot_temperature, f.top_k, f.top_p) == (0.5, 1.5, 3, 0.9)
    assert [row.token.id for row in f.rows] == ref.best[:6]
    for row in f.rows:
        id, p = row.token.id, float(probs[row.token.id])
        cold, hot = ((logits / t).softmax(-1)[id] for t in (f.cold_temperature, f.hot_temperature))
        top_k = p / float(sums[f.top_k - 1]) if ranks[id] < f.top_k else 0
        top_p = p / float(sums[kept - 1]) if ranks[id] < kept else 0
        near([row.prob, row.cold, row.hot, row.top_k, row.top_p], [p, cold, hot, top_k, top_p])


@torch.inference_mode()
def test_repeating_appends_what_transformers_appends_greedily(ref, facts):
    f, ids = facts["repeating"], list(ref.ids)
    assert (f.n_tokens, f.n_ctx, f.eos.id) == (len(ids), 512, 0)
    assert [step.step for step in f.steps] == list(range(6))
    for step in f.steps:
        probs = ref.model(torch.tensor([ids])).logits[0, -1].softmax(-1)  # all of it, without cache
        assert (step.n_tokens, step.token.id) == (len(ids), int(probs.argmax()))
        near(step.prob, probs.max())
        ids.append(step.token.id)
    assert f.text == Tokenizer.from_folder(FABLE).decode(ids[len(ref.ids) :])


@torch.inference_mode()
def test_cache_keeps_as_many_numbers_as_that_of_transformers(ref, facts):
    f, T = facts["cache"], len(ref.ids)
    kept = ref.model(torch.tensor([ref.ids]), use_cache=True).past_key_values
    n = sum(layer.keys.numel() + layer.values.numel() for layer in kept.layers)
    assert f.n_kept * T == n
    assert (f.prompt_nbytes, f.token_nbytes, f.full_nbytes) == (4 * n, 4 * n // T, 4 * n // T * 512)
    assert (f.n_layer, f.n_head, f.head_dim, f.n_ctx) == (LAYERS, H, D, 512)
    assert (f.n_tokens, f.n_computed, f.token.id) == (T, T + 1, ref.best[0])
    assert f.max_difference < 1e-3


def test_chat_has_the_share_of_the_context_and_the_probability_of_the_end(ref, facts):
    f = facts["chat"]
    assert (f.n_tokens, f.n_ctx, f.eos.id) == (len(ref.ids), 512, ref.model.config.eos_token_id)
    assert f.context_used == len(ref.ids) / 512
    assert f.eos_prob == pytest.approx(float(ref.probs[0]), rel=1e-3)


def test_any_of_several_end_tokens_ends_a_text(ref):
    run = run_of_text()
    third = repeating(Walk(run)).steps[2].token.id
    run.model.config = replace(run.model.config, eos_ids=(0, third))
    walk = Walk(run)
    f = repeating(walk)
    assert [step.token.id for step in f.steps][2:] == [third]
    assert f.text == b"".join(step.token.text for step in f.steps[:2]).decode()
    f = chat(walk)
    assert (f.n_eos, f.eos.id) == (2, 0)
    near(f.eos_prob, ref.probs[0] + ref.probs[third])


def stream(w, ids, without=(None, None), add=(None, None)):
    """The stream after each layer, a head set to zero, a vector added at the last position."""
    x, found = w["wte.weight"][ids] + w["wpe.weight"][: len(ids)], []
    for layer in range(LAYERS):
        x = block(w, layer, x, without[1] if layer == without[0] else None).after
        if layer == add[0]:
            x = torch.cat([x[:-1], x[-1:] + add[1]])
        found.append(x)
    return found


def test_changing_is_the_run_without_the_head_and_with_the_direction_added(ref, facts):
    f, (layer, head, _), at = facts["changing"], keenest(ref), LAYERS // 2
    tokenizer = Tokenizer.from_folder(FABLE)
    words = [i for i in ref.best[1:] if re.fullmatch(rb" ?[A-Za-z]+", tokenizer.token_bytes(i))]
    towards = words[0]
    assert (f.best.id, f.towards.id, f.ablate) == (ref.best[0], towards, f"L{layer}.H{head}")
    assert f.steer == f'"{tokenizer.decode([towards])}" @ L{at} * {f.strength:g}'
    plus, mean = (stream(ref.w, x)[at][1:].mean(0) for x in ([0, towards], ref.ids))
    finals = {
        "untouched": stream(ref.w, ref.ids),
        "without": stream(ref.w, ref.ids, without=(layer, head)),
        "steered": stream(ref.w, ref.ids, add=(at, f.strength * (plus - mean))),
    }
    near(f.added, f.strength * (plus - mean).norm(), atol=1e-3)
    near(f.stream, stream(ref.w, ref.ids)[at][-1].norm(), atol=1e-3)
    assert 0.2 < f.added / f.stream < 0.4
    assert [outcome.name for outcome in f.outcomes] == list(finals)
    for o in f.outcomes:
        probs = unembedded(ref.w, finals[o.name][-1][-1]).softmax(-1)
        assert o.top.id == int(probs.argmax())
        found = [o.top_prob, o.best_prob, o.steered_prob]
        near(found, [probs.max(), probs[ref.best[0]], probs[towards]], atol=1e-3)
    assert len({round(o.best_prob, 3) for o in f.outcomes}) == 3  # each change did something
