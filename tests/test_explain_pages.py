"""The guided walk's figures, page by page: recomputed from the weights and by `transformers`."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import FABLE
from safetensors.torch import load_file
from test_inspection_views import theirs_of
from test_model import ours

from llmcli.inspection import explain
from llmcli.inspection.run import Ask, Run
from llmcli.tokenizer import Tokenizer

TEXT = "Once upon a time, there was a little girl named Lily. Lily had a red ball. One day"
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


@pytest.fixture(scope="module")
def facts():
    """What the walk says of the same prompt, by topic."""
    tokenizer = Tokenizer.from_folder(FABLE)
    prefix = list(tokenizer.prefix_ids)
    ids = [*prefix, *tokenizer.encode(TEXT)]
    run = Run(ours(FABLE), ids, tokenizer.token_bytes, n_prefix=len(prefix))
    pages = explain.view(run, Ask(position=len(ids) - 1)).pages
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


# --- pages 2 to 8: tokens, vocab space, vectors and matrices -------------------------------------


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
