"""The words that say what to change, and what is said of those that make no sense."""

from __future__ import annotations

import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from llmcli.config import ModelConfig
from llmcli.errors import UsageError
from llmcli.inspection import grammar
from llmcli.inspection.plan import Prompt, plan, read

CONFIG = ModelConfig.from_hf({"model_type": "gpt2", **TINY})  # 3 layers, 4 heads, 128 neurons
ALL = (0, 1, 2)
HEADS = (0, 1, 2, 3)
WORDS = [b"<>", b"Lily", b" saw", b" a", b" li", b"ly", b".", b" Li", b"ly", b" was", b" sad"]


def prompt(n_prefix=1):
    return Prompt(
        range(len(WORDS)), lambda text: [0, *range(len(text))], WORDS.__getitem__, n_prefix
    )


def planned(**options):
    return plan(read(CONFIG, **options), prompt(), CONFIG)


@pytest.mark.parametrize(
    ("text", "part", "layers", "indices", "fill"),
    [
        ("L2.H3", "head", (2,), (3,), "zero"),
        ("L2.H*", "head", (2,), HEADS, "zero"),
        ("L*.H-1:mean", "head", ALL, (3,), "mean"),
        (" L-1 . attn : zero ", "attn", (2,), (), "zero"),
        ("L0.mlp", "mlp", (0,), (), "zero"),
        ("L0.N127", "neuron", (0,), (127,), "zero"),
        ("L1:mean", "layer", (1,), (), "mean"),
        ("L*", "layer", ALL, (), "zero"),
        ("pos_embed:mean", "pos_embed", (), (), "mean"),
    ],
)
def test_what_can_be_ablated(text, part, layers, indices, fill):
    made = grammar.ablation(text, CONFIG)
    assert (made.part, made.layers, made.indices, made.fill) == (part, layers, indices, fill)


@pytest.mark.parametrize(
    ("text", "layers", "heads", "query", "key"),
    [
        ("L2.H3: 7 -> 2", (2,), (3,), 7, 2),
        ("7->2", ALL, HEADS, 7, 2),
        ('* -> "Lily"', ALL, HEADS, None, "Lily"),
        ('L1: "a \\"b\\\\" -> *', (1,), HEADS, 'a "b\\', None),
        ("L*.H0: -1 -> 0", ALL, (0,), -1, 0),
    ],
)
def test_what_can_be_knocked_out(text, layers, heads, query, key):
    made = grammar.knockout(text, CONFIG)
    assert (made.layers, made.heads) == (layers, heads)
    assert (made.query.where, made.key.where) == (query, key)


def test_a_file_of_a_vector_is_called_as_the_system_calls_it(monkeypatch):
    """In a locale of ASCII what is beyond it is hidden, in names that are opened too."""
    monkeypatch.setattr("os.fsdecode", lambda name: name.decode("ascii", "surrogateescape"))
    made = grammar.steer("é.safetensors @ L0 * 1", CONFIG)
    assert made.path == "\udcc3\udca9.safetensors"


def test_what_can_be_steered_with():
    made = grammar.steer('"love" - "hate" @ L2 * 6', CONFIG)
    assert (made.plus, made.minus, made.layer, made.strength) == ("love", "hate", 2, 6.0)
    assert grammar.steer('"a - b @ L0 * 1"@L1*-2.5e0', CONFIG).plus == "a - b @ L0 * 1"
    made = grammar.steer("my folder/v.safetensors @ L0 * .5", CONFIG)
    assert (made.path, made.strength) == ("my folder/v.safetensors", 0.5)
    assert grammar.steer('"a" @ L1', CONFIG).strength == 1


def test_what_can_be_patched():
    made = grammar.swap('L2.resid_mid@5 from "other prompt"', CONFIG)
    assert (made.point, made.head, made.place.where, made.other) == (
        "2.resid_mid", None, 5, "other prompt",
    )  # fmt: skip
    made = grammar.swap('L-1.H3 @ * from "x"', CONFIG)
    assert (made.point, made.head, made.place.where) == ("2.z", 3, None)
    assert grammar.swap('embed@"Lily" from "x"', CONFIG).point == "embed"


@pytest.mark.parametrize(
    ("option", "text", "at", "said"),
    [
        ("ablate", "L3.H0", 1, "there is no layer 3.*layers go from 0 to 2"),
        ("ablate", "L0.H4", 4, "heads go from 0 to 3"),
        ("ablate", "L0.N128", 4, "neurons go from 0 to 127"),
        ("ablate", "L0.Hx", 4, "'x' is not expected here.*a head's number"),
        ("ablate", "L0.attention", 3, "a part: attn, mlp, H5"),
        ("ablate", "L0.H1:median", 6, "zero or mean"),
        ("ablate", "L0.H1 L1", 6, "nothing more"),
        ("ablate", "", 0, "something is missing.*a layer"),
        ("ablate", "wte", 0, "a layer, as in L3.H5"),
        ("ablate", "L0H1", 2, "a dot before it, as in L3.H5"),
        ("ablate", "\x1b[31m", 0, r"\\x1b\[31m"),
        ("knockout", "7 > 2", 2, "-> and what"),
        ("knockout", "L0.H1 7 -> 2", 6, "a colon"),
        ("knockout", "7 -> Lily", 5, "a text in quotes"),
        ("knockout", '7 -> ""', 5, "the text is empty"),
        ("knockout", "11 -> 2", 0, "there is no position 11.*from 0 to 10"),
        ("knockout", '* -> "Bob"', 5, "does not hold this text"),
        ("knockout", '* -> "Lil"', 5, "does not hold this text"),
        ("knockout", "2 -> 7", 5, "no position sees what comes after it"),
        ("knockout", "0 -> 0", 0, "would have nothing left to see"),
        ("steer", "love @ L0 * 1", 0, "a text in quotes"),
        ("steer", '"" @ L0 * 1', 0, "the text is empty"),
        ("steer", '"a" @ L* * 1', 6, "a vector belongs to one layer"),
        ("steer", '"a" @ L9 * 1', 7, "there is no layer 9"),
        ("steer", '"a" @ L1 2', 9, "not expected here.*\\* and how strong"),
        ("steer", '"a" @ L1 * much', 11, "a number"),
        ("steer", '"a" @ L1 * 1e99', 11, "too strong"),
        ("patch", 'L1.resid_mid@5 from ""', 20, "the text is empty"),
        ("patch", 'L1.resid_middle@5 from "x"', 3, "one of resid_pre"),
        ("patch", 'L1.scores@5 from "x"', 3, "one of resid_pre"),
        ("patch", 'L1.resid_mid@99 from "x"', 13, "there is no position 99"),
        ("patch", 'L1.resid_mid@5 from "x"', 20, "has 2 tokens, so no position 5"),
        ("patch", 'L1.resid_mid@5 "x"', 15, "from and another prompt"),
    ],
)  # fmt: skip
def test_a_caret_stands_under_what_is_wrong(option, text, at, said):
    with pytest.raises(UsageError) as caught:
        planned(**{option: [text]})
    entry, caret = caught.value.remedy.split("\n")
    told = f"{caught.value.fact} {caret}"
    assert caught.value.fact.startswith(f"--{option}: ")
    assert caret.index("^") - 2 == at
    assert len(entry) >= at + 2
    import re

    assert re.search(said, told + entry), told


def test_the_caret_counts_cells_not_characters():
    with pytest.raises(UsageError) as caught:
        planned(knockout=['"大き" -> x'])
    assert caught.value.remedy.split("\n")[1].index("^") == 2 + len('"大き" -> ') + 2


def test_a_text_is_found_where_it_is_a_word():
    def keys(text):
        return [key for _, key in planned(knockout=[f"* -> {text}"]).hidden_keys[0].pairs]

    assert keys('"Lily"') == [1, 7, 8]  # " Li" and "ly" together, too
    assert keys('"lily"') == [4, 5]
    assert keys('" was sad"') == [9, 10]
    assert keys('"."') == [6]
    assert keys("-1") == [10]


def test_a_text_that_looks_back_on_another_leaves_out_what_it_cannot_see():
    block = planned(knockout=['"Lily" -> "saw"']).hidden_keys[0]
    assert block.pairs == ((7, 2), (8, 2))


def test_a_row_that_several_entries_would_empty_together_is_refused():
    planned(knockout=["2 -> 2", "2 -> 0"])
    with pytest.raises(UsageError, match="nothing left to see"):
        planned(knockout=["2 -> 2", "2 -> *"])
    with pytest.raises(UsageError, match="nothing left to see"):
        planned(knockout=["2 -> 2", "* -> 0", "L1.H2: 2 -> 1"])
    planned(knockout=["2 -> 2", "* -> 0", "L1.H2: 1 -> 0"])
    planned(knockout=["* -> *"])  # each still sees itself


@pytest.mark.parametrize(
    "options",
    [
        {"ablate": ["L1.H2", "L1.H2"]},
        {"ablate": ["L1.H*", "L1.H2:mean"]},
        {"ablate": ["L1.attn", "L1.H2"]},
        {"ablate": ["L1", "L1.N5:mean"]},
        {"ablate": ["L1.mlp", "L*"]},
        {"ablate": ["L1.attn"], "knockout": ["L1: 3 -> 2"]},
        {"ablate": ["L1.H2"], "patch": ['L1.H2@1 from "abc"']},
        {"ablate": ["L1.mlp:mean"], "patch": ['L1.mlp_out@1 from "abc"']},
        {"ablate": ["pos_embed"], "patch": ['pos_embed@1 from "abc"']},
        {"patch": ['L1.z@1 from "abc"', 'L1.H0@1 from "def"']},
        {"patch": ['L1.resid_pre@* from "abcdefghijkl"', 'L1.resid_pre@3 from "defg"']},
    ],
    ids=str,
)
def test_contradictions_are_refused(options):
    told = {("ablate",): "changes the same", ("patch",): "patches this place too"}
    with pytest.raises(UsageError, match=told.get(tuple(options), "would undo this")):
        planned(**options)


def test_what_only_meets_is_not_refused():
    planned(
        ablate=["L1.H2", "L1.mlp", "L0.attn:mean"],
        knockout=["L1: 3 -> 2"],
        patch=['L1.H1@1 from "abc"', 'L1.H1@2 from "def"', 'L1.resid_pre@1 from "abc"'],
        steer=['"a" @ L1 * 2', '"b" @ L1 * 2'],
    )


def test_steer_prompt_needs_something_to_steer():
    with pytest.raises(UsageError, match="--steer-prompt needs --steer"):
        read(CONFIG, ablate=["L1"], steer_prompt=True)


@given(st.text(alphabet='L*H-N>0123.:@"\\ abefilmnoprstwxz_', max_size=24))
def test_any_text_is_read_or_refused_with_a_caret_inside_it(text):
    for option in ("ablate", "knockout", "steer", "patch"):
        try:
            planned(**{option: [text]})
        except UsageError as error:
            entry, caret = error.remedy.split("\n")
            assert caret.index("^") <= max(len(entry), 2)


def test_a_vector_file_without_a_layer_is_told_what_comes_next():
    with pytest.raises(UsageError) as caught:
        grammar.steer("v.safetensors * 2", CONFIG)
    assert caught.value.remedy.splitlines()[1].index("^") == 2 + len("v.safetensors ")
    assert "@ and a layer" in caught.value.remedy
