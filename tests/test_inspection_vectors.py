"""Views of embedding vectors, held against plain torch on the weights of `transformers`."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from conftest import FABLE
from test_cli import assert_fails
from test_inspection_views import IDS, run_of, theirs_of
from test_model import ours
from torch.nn.functional import cosine_similarity

from llmcli.commands.inspect_target import analogy_terms
from llmcli.config import read_config
from llmcli.errors import UsageError
from llmcli.inspection import embed, neighbors, positions
from llmcli.inspection.ask import Ask
from llmcli.tokenizer import Tokenizer

TOLERANCE = 1e-5


def equal(found, expected):
    return found == pytest.approx(expected, abs=TOLERANCE)


@pytest.fixture
def pair(save_gpt2):
    """A run of ours, and what `transformers` says of the same ids."""
    folder, theirs = save_gpt2(seed=5)
    return run_of(ours(folder)), theirs_of(theirs, IDS), theirs


# --- embed ---------------------------------------------------------------------------------------


def test_the_stream_begins_as_token_vector_plus_position_vector(pair):
    run, out, theirs = pair
    made = embed.view(run, Ask(position=9))
    held = embed.tensors(run, Ask(position=9))
    torch.testing.assert_close(held["sum"], out.hidden_states[0][0], atol=TOLERANCE, rtol=0)
    wte, wpe = theirs.transformer.wte.weight.detach(), theirs.transformer.wpe.weight.detach()
    assert [row.token.id for row in made.rows] == IDS
    for place, row in enumerate(made.rows):
        token, position = wte[IDS[place]], wpe[place]
        vectors = (token, position, out.hidden_states[0][0, place])
        norms = (row.norm, row.position_norm, row.sum_norm)
        firsts = (row.first, row.position_first, row.sum_first)
        for norm, first, vector in zip(norms, firsts, vectors, strict=True):
            assert equal(norm, float(vector.square().sum().sqrt()))
            assert equal(list(first), vector[: embed.FIRST].tolist())
        assert equal(row.cosine, float(cosine_similarity(token, position, dim=0)))
        before = [float(cosine_similarity(token, wte[id], dim=0)) for id in IDS[: place + 1]]
        assert equal(list(row.cosines), before)


def test_embed_shows_rows_around_the_position(pair):
    run = pair[0]
    every = embed.view(run, Ask(position=4))
    some = embed.view(run, Ask(position=4, rows=3))
    assert [row.position for row in some.rows] == [3, 4, 5]
    for row in some.rows:
        whole = every.rows[row.position]
        assert row.first == whole.first
        assert equal(list(row.cosines), list(whole.cosines[3:]))


# --- neighbors -----------------------------------------------------------------------------------


def brute_force(theirs, vector):
    """Cosine, dot product and next-token logits of `vector` for each vocabulary entry."""
    wte = theirs.transformer.wte.weight.detach()
    with torch.inference_mode():
        logits = theirs.lm_head(theirs.transformer.ln_f(vector))
    return cosine_similarity(wte, vector[None], dim=-1), (wte * vector).sum(-1), logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("terms", [((1, 7),), ((1, 7), (-2, 30), (1, 52))])
def test_neighbours_are_the_largest_of_all_tokens(tied, terms, save_gpt2):
    folder, theirs = save_gpt2(seed=8, tie_word_embeddings=tied)
    run = run_of(ours(folder), [])
    made = neighbors.view(run, Ask(position=0, analogy=terms, token=11))
    wte = theirs.transformer.wte.weight.detach()
    vector = sum(times * wte[id] for times, id in terms)
    cosine, dot, logits = brute_force(theirs, vector)
    assert equal(made.norm, float(vector.norm()))
    assert equal(made.mean_norm, float(wte.norm(dim=-1).mean()))
    for rows, values in ((made.by_cosine, cosine), (made.by_dot, dot)):
        assert [row.token.id for row in rows] == values.topk(neighbors.ROWS).indices.tolist()
        for row in rows:
            assert equal(row.cosine, float(cosine[row.token.id]))
            assert equal(row.dot, float(dot[row.token.id]))
            assert equal(row.norm, float(wte[row.token.id].norm()))
            assert row.asked == (row.token.id in [id for _, id in terms])
    assert [row.token.id for row in made.returns] == logits.topk(10).indices.tolist()
    probs = logits.softmax(-1)
    for row in made.returns:
        assert equal(row.logit, float(logits[row.token.id]))
        assert equal(row.prob, float(probs[row.token.id]))
    assert [fate.token.id for fate in made.fates] == [*(id for _, id in terms), 11]
    for fate in made.fates:
        id = fate.token.id
        ranks = [values.argsort(descending=True).tolist().index(id)
                 for values in (cosine, dot, logits)]  # fmt: skip
        assert [fate.cosine_rank, fate.dot_rank, fate.return_rank] == ranks
        assert equal([fate.cosine, fate.dot, fate.return_prob],
                     [float(cosine[id]), float(dot[id]), float(probs[id])])  # fmt: skip


def test_a_token_is_its_own_nearest_by_cosine(pair):
    made = neighbors.view(pair[0], Ask(position=0, token=33, rows=1))
    assert (made.by_cosine[0].token.id, made.by_cosine[0].asked) == (33, True)
    assert equal(made.by_cosine[0].cosine, 1.0)
    assert [term.times for term in made.terms] == [1]


def test_the_round_trip_counts_the_tokens_that_come_back(save_gpt2, monkeypatch):
    folder, theirs = save_gpt2(seed=8, n_embd=8)
    run = run_of(ours(folder), [])
    wte = theirs.transformer.wte.weight.detach()
    back = brute_force(theirs, wte)[2].argmax(-1) == torch.arange(97)
    assert 0 < int(back.sum()) < 97  # lossy, or the test shows nothing
    assert neighbors.round_trips(run) == (97, int(back.sum()))
    monkeypatch.setattr(neighbors, "TRIP_PRODUCTS", wte.numel() * 9)
    sent = [97 * i // 10 for i in range(10)]
    assert neighbors.round_trips(run) == (10, int(back[sent].sum()))
    made = neighbors.view(run, Ask(position=0, token=5))
    assert any(note.startswith("approximate") for note in made.notes)


def test_a_vector_of_zeros_is_near_to_none(save_gpt2):
    folder, _ = save_gpt2(seed=8)
    run = run_of(ours(folder), [])
    with torch.no_grad():
        run.model.token_embedding.weight[5] = 0
    made = neighbors.view(run, Ask(position=0, token=5))
    assert {row.cosine for row in made.by_cosine} == {0.0}


def test_a_king_who_is_a_woman_is_still_a_king():
    """On fable the famous answer comes third: the terms of the sum are nearer."""
    known = Tokenizer.from_folder(FABLE)
    terms = analogy_terms("king - man + woman", known, read_config(FABLE))
    made = neighbors.view(run_of(ours(FABLE), []), Ask(position=0, analogy=terms))
    near = [known.token_bytes(row.token.id) for row in made.by_cosine[:3]]
    assert near == [b" king", b" woman", b" queen"]


# --- the words of an analogy ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def known():
    return Tokenizer.from_folder(FABLE), read_config(FABLE)


def test_bare_words_come_after_a_space_and_quoted_ones_as_they_are(known):
    id_of = known[0].id_of
    for text, terms in {
        "king - man + woman": ((1, " king"), (-1, " man"), (1, " woman")),
        '"king"-king': ((1, "king"), (-1, " king")),
        "- he + she + she": ((-1, " he"), (2, " she")),
        'She - "."': ((1, " She"), (-1, ".")),
        f"id:{id_of(' dog')} + ming": ((1, " dog"), (1, "ming")),
        "king - man + man": ((1, " king"),),
    }.items():
        expected = tuple((times, id_of(token)) for times, token in terms)
        assert analogy_terms(text, *known) == expected, text
    assert analogy_terms(None, *known) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "something is missing"),
        ("king -", "something is missing"),
        ("king man", "'man' is not expected here. +king man\n {7}\\^ \\+ or -"),
        ('"king', "not expected here"),
        ('king - ""', "the text is empty"),
        ("qwertyuiop", 'is not one token but \\d+: "q"'),
        ("id:4096", "Ids go from 0 to 4095"),
        ("king - man + man - king", "adds up to nothing"),
    ],
)
def test_a_mistake_in_an_analogy_is_named(text, said, known):
    with pytest.raises(UsageError, match=said) as caught:
        analogy_terms(text, *known)
    assert not caught.value.fact.startswith("--token")


# --- positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_ctx", [48, 150])  # one position to a pixel, and three
def test_the_map_holds_the_mean_cosine_of_its_blocks(n_ctx, save_gpt2):
    folder, theirs = save_gpt2(seed=4, n_positions=n_ctx)
    made = positions.view(run_of(ours(folder), []), Ask(position=9))
    wpe = theirs.transformer.wpe.weight.detach()
    size = made.positions_per_pixel
    assert size == {48: 1, 150: 3}[n_ctx]
    blocks = wpe.split(size)
    assert [(s.start, s.end) for s in made.stretches[:2]] == [(0, size - 1), (size, 2 * size - 1)]
    assert made.stretches[-1].end == n_ctx - 1
    assert len(made.stretches) == len(blocks) <= positions.MAP_SIZE
    for i, stretch in enumerate(made.stretches):
        assert equal(stretch.norm, float(blocks[i].norm(dim=-1).mean()))
        for j, cosine in enumerate(stretch.cosines):
            pairs = cosine_similarity(blocks[i][:, None], blocks[j][None], dim=-1)
            assert equal(cosine, float(pairs.mean()))
        assert len(stretch.cosines) == i + 1


def test_the_last_pixel_may_be_smaller(save_gpt2):
    folder, theirs = save_gpt2(seed=4, n_positions=130)
    made = positions.view(run_of(ours(folder), []), Ask(position=0))
    wpe = theirs.transformer.wpe.weight.detach()
    last = made.stretches[-1]
    assert (last.start, last.end) == (129, 129)
    assert equal(last.cosines[-1], 1.0)
    expected = cosine_similarity(wpe[129:], wpe[:3], dim=-1).mean()
    assert equal(last.cosines[0], float(expected))


def test_distances_and_the_nearest_are_those_of_all_pairs(save_gpt2):
    folder, theirs = save_gpt2(seed=4)
    made = positions.view(run_of(ours(folder), []), Ask(position=9, rows=5))
    wpe = theirs.transformer.wpe.weight.detach()
    assert [row.distance for row in made.distances] == [1, 2, 4, 8, 16, 32]
    for row in made.distances:
        pairs = cosine_similarity(wpe[row.distance :], wpe[: -row.distance], dim=-1)
        assert row.n_pairs == len(pairs)
        assert equal([row.cosine, row.lowest, row.highest],
                     [float(pairs.mean()), float(pairs.min()), float(pairs.max())])  # fmt: skip
    own = cosine_similarity(wpe, wpe[9:10], dim=-1)
    own[9] = -2
    assert [row.position for row in made.nearest] == own.topk(5).indices.tolist()
    for row in made.nearest:
        assert equal(
            [row.cosine, row.dot], [float(own[row.position]), float(wpe[row.position] @ wpe[9])]
        )
    assert equal(made.norm, float(wpe[9].norm()))


def test_fable_has_learned_that_near_positions_are_alike():
    """An order that nobody told it: on average, the farther apart the less alike."""
    made = positions.view(run_of(ours(FABLE), []), Ask(position=0))
    means = [row.cosine for row in made.distances if row.distance >= 8]
    assert all(near > far for near, far in pairwise(means))


# --- without a prompt ----------------------------------------------------------------------------


def test_views_of_the_weights_need_no_prompt_and_leave_stdin_alone(llmcli, model_folder):
    for options in (["--view", "positions"], ["--view", "neighbors", "--token", "id:40"]):
        alone = llmcli("inspect", *options, "-m", model_folder, "--json", input=b"\xff")
        assert alone.exit_code == 0, alone.output
        document = json.loads(alone.stdout)
        assert document["model"]["dtype"] == "float32"
        assert "prompt" not in document
        assert "ids" not in document


def test_a_prompt_and_changes_are_of_no_use_to_them(llmcli, model_folder):
    common = ["inspect", "-m", model_folder, "--view", "positions", "--json"]
    alone = llmcli(*common)
    beside = llmcli(*common, "Once", "--knockout", "7 -> 2", "--baseline")
    assert beside.stdout == alone.stdout
    assert beside.stderr == "Not used by --view positions: the prompt, --knockout, --baseline.\n"


def test_they_may_stand_beside_views_of_a_prompt(llmcli, model_folder):
    made = llmcli("inspect", "Once upon a", "-m", model_folder, "--json", "--view", "lens",
                  "--view", "positions", "--view", "neighbors", "--token", "id:40")  # fmt: skip
    views = json.loads(made.stdout)["views"]
    assert [view["view"] for view in views] == ["lens", "positions", "neighbors"]
    assert views[0]["position"] == views[1]["position"] < 48


def test_without_a_prompt_a_position_is_one_of_the_context(llmcli, model_folder):
    common = ["inspect", "-m", model_folder, "--view", "positions"]
    assert "# position\t63\n" in llmcli(*common).stdout
    assert "# position\t62\n" in llmcli(*common, "--position", -2).stdout
    assert_fails(llmcli(*common, "--position", 64), 2, "64 positions in the context")


def test_neighbours_of_nobody(llmcli, model_folder):
    done = llmcli("inspect", "-m", model_folder, "--view", "neighbors")
    assert_fails(done, 2, "needs to know whose", "--analogy")


def test_embeddings_that_are_no_numbers(llmcli, copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    for name, options in (("wpe", ["positions"]), ("wte", ["neighbors", "--token", "id:4"])):
        damaged = {key: value.clone() for key, value in weights.items()}
        damaged[f"transformer.{name}.weight"][3, 2] = float("nan")
        save_file(damaged, copied / "model.safetensors", {"format": "pt"})
        assert_fails(llmcli("inspect", "-m", copied, "--view", *options), 5, "not numbers")


def test_tensors_of_positions_are_all_cosines(llmcli, model_folder, tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "all.safetensors"
    llmcli("inspect", "-m", model_folder, "--view", "positions", "--tensors", path)
    held = load_file(path)
    wpe = held["positions.vectors"]
    assert wpe.shape == (64, 32)
    expected = cosine_similarity(wpe[:, None], wpe[None], dim=-1)
    torch.testing.assert_close(held["positions.cosines"], expected, atol=TOLERANCE, rtol=0)
