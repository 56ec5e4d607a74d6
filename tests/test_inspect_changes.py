"""`inspect` of a changed run: every view shows it, and its sums still close."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from importlib import import_module

import inspect_schema
import jsonschema
import pytest
import torch
from test_changes import CHANGES, PROMPT
from test_cli import assert_fails

from llmcli.gpt.model import GPT
from llmcli.inspection import head, why
from llmcli.inspection.attribution import Part
from llmcli.inspection.catalogue import VIEWS
from llmcli.inspection.difference import difference
from llmcli.inspection.next import Guess, Source
from llmcli.inspection.values import Row, Token, View

# `embed` comes before most changes, `explain` is of the untouched model; the others need more.
NOT_ALONE = ("embed", "patching", "steer", "head", "circuits", "explain")
COMPUTED = [name for name, e in VIEWS.items() if e.prompt and name not in NOT_ALONE]
EVERYWHERE = [
    *CHANGES,
    ["--ablate", "L0", "--ablate", "L2.attn:mean"],
    ["--patch", 'L0.resid_pre@2 from "Tom had a"', "--patch", 'L2.resid_post@2 from "A red ball"'],
    ["--patch", 'embed@1 from "Tom had a"', "--knockout", "L1.H0: * -> *"],
]  # fmt: skip


@pytest.fixture
def views(llmcli, model_folder):
    """Run `inspect --json` on the random model; its object, checked against the schema."""

    def run(*arguments, prompt=PROMPT):
        done = llmcli("inspect", prompt, "-m", model_folder, "--json", "--quiet", *arguments)
        assert done.exit_code == 0, done.output
        document = json.loads(done.stdout)
        jsonschema.validate(document, inspect_schema.schema())
        return document

    return run


def all_views():
    return [part for name in COMPUTED for part in ("--view", name)]


def test_every_view_shows_the_changed_run_and_closes_its_sums(views):
    """`check` and `attribution` fail by themselves where anything does not add up."""
    plain = views(*all_views())
    assert "changes" not in plain
    for change in EVERYWHERE:
        changed = views(*all_views(), *change)
        entries = zip(change[::2], change[1::2], strict=False)
        assert changed["changes"] == [f"{option} {entry}" for option, entry in entries]
        for here, there in zip(changed["views"], plain["views"], strict=True):
            assert here != there, here["view"]
        by_name = {view["view"]: view for view in changed["views"]}
        assert by_name["check"]["passed"]
        assert by_name["change"]["kl_bits"] > 0


@pytest.mark.parametrize(("change", "told"), [("L1: 2 -> 0", "attention"), ("2 -> 0", "nothing")])
def test_check_claims_nothing_of_a_fast_path_that_a_change_leaves_out(views, change, told):
    row = views("--view", "check", "--knockout", change)["views"][0]["comparisons"][0]
    assert row["means"].startswith(told)


def test_the_next_token_is_what_generate_would_say(views, llmcli, model_folder):
    for change in EVERYWHERE[1:5]:
        inspected = views(*change)["views"][0]["candidates"][0]
        done = llmcli("generate", PROMPT, "-m", model_folder, "--temperature", 0, "--json",
                      "--max-new-tokens", 1, *change)  # fmt: skip
        assert json.loads(done.stdout)["samples"][0]["tokens"][0]["id"] == inspected["token"]["id"]


def test_replaced_outputs_and_what_was_put_in_are_parts_of_the_logit(views):
    change = ["--ablate", "L1.attn", "--steer", '"ball" - "girl" @ L2 * 3']
    parts = {part["part"]: part["value"]
             for part in views("--view", "attribution", *change)["views"][0]["parts"]}  # fmt: skip
    assert parts["L1.attn"] == 0
    assert parts["L2.resid_post"] != 0
    assert "L1.H0" not in parts
    assert "L1.attn.bias" not in parts
    assert "L0.H0" in parts


def test_change_tells_how_far_the_stream_moved(views):
    view = views("--view", "change", "--ablate", "L1.mlp")["views"][0]
    shares = [row["share"] for row in view["layers"]]
    assert shares[:2] == [0, 0]
    assert min(shares[2:]) > 0
    assert [row["kl_bits"] for row in view["places"]][view["position"]] == view["kl_bits"]
    for row in view["candidates"]:
        assert row["difference"] == pytest.approx(row["changed_logit"] - row["logit"], abs=1e-4)


def test_change_reads_the_prompt_once_with_and_once_without(views, monkeypatch):
    read = []
    stream = GPT.stream
    monkeypatch.setattr(GPT, "stream", lambda *a: read.append(len(a[1][0])) or stream(*a))
    view = views("--view", "change", "--ablate", "L1.mlp")["views"][0]
    assert read == [view["n_tokens"]] * 2


def test_a_change_without_effect_differs_in_nothing(views):
    view = views("--view", "change", "--steer", '"ball" @ L1 * 0')["views"][0]
    assert {row["kl_bits"] for row in view["places"]} == {0}
    assert {row["moved"] for row in view["layers"]} == {0}


def test_baseline_adds_the_untouched_views_and_what_changed(views, llmcli, model_folder):
    change = ["--view", "tokens", "--view", "lens", "--ablate", "L1.H2"]
    both, alone, plain = views(*change, "--baseline"), views(*change), views(*change[:4])
    assert [view["view"] for view in both["views"]] == ["tokens", "lens", "change"]
    assert both["views"][:2] == alone["views"]
    assert both["baseline"] == plain["views"]
    tsv = llmcli("inspect", PROMPT, "-m", model_folder, *change, "--baseline").stdout
    assert re.findall("^# (untouched|view|difference) (.*)$", tsv, re.MULTILINE) == [
        ("untouched", "tokens"), ("untouched", "lens"), ("view", "tokens"), ("view", "lens"),
        ("view", "change"), ("difference", "tokens"), ("difference", "lens"),
    ]  # fmt: skip


def test_the_difference_is_each_number_changed_minus_untouched(views):
    document = views(*all_views(), "--ablate", "L1.H2", "--baseline", "--token", "id:7")
    by = {key: {view["view"]: view for view in document[key]} for key in ("views", "baseline")}
    numbers = {view["of"]: view["numbers"] for view in document["difference"]}
    assert set(numbers) == set(COMPUTED) - {"change", "check"}

    def told(view, quantity):
        found = [n for n in numbers[view] if n["quantity"] == quantity]
        for n in found:
            assert n["difference"] == pytest.approx(n["changed"] - n["untouched"], abs=1e-5)
        return {n["place"]: (n["untouched"], n["changed"]) for n in found}

    rows = zip(by["baseline"]["lens"]["rows"], by["views"]["lens"]["rows"], strict=True)
    pairs = {f"after {a['after']} position {a['position']}": (a, b) for a, b in rows}
    assert told("lens", "kl_bits") == {
        place: (a["kl_bits"], b["kl_bits"]) for place, (a, b) in pairs.items()
    }
    assert told("lens", "top_prob") == {  # of a token that is another now there is none
        place: (a["top_prob"], b["top_prob"])
        for place, (a, b) in pairs.items()
        if a["top"] == b["top"]
    }
    parts = [{f"part {row['part']}": row["value"] for row in by[key]["attribution"]["parts"]}
             for key in ("baseline", "views")]  # fmt: skip
    assert told("attribution", "value") == {
        part: (parts[0][part], parts[1][part]) for part in parts[1] if part in parts[0]
    }
    tokens = [n for n in numbers["tokens"] if n["quantity"] == "surprisal_bits"]
    assert [n["token"]["id"] for n in tokens] == document["ids"][1:]
    facts = {n["quantity"]: n["changed"] for n in numbers["tokens"] if not n["table"]}
    assert facts["perplexity"] == by["views"]["tokens"]["perplexity"]


def test_what_either_run_lists_is_compared(views):
    """Parts that a change silences fall out of the changed run's list, and moved most."""
    changed = ["--ablate", "L1.H2", "--ablate", "L2.N5", "--baseline", "--token", "id:7"]
    whole = views("--view", "attribution", *changed)["difference"][0]["numbers"]
    whole = {n["place"]: n["difference"] for n in whole if n["quantity"] == "value"}
    document = views("--view", "attribution", "--rows", 4, *changed)
    listed = {f"part {row['part']}" for key in ("views", "baseline")
              for row in document[key][0]["parts"]}  # fmt: skip
    assert all(len(document[key][0]["parts"]) == 4 for key in ("views", "baseline"))
    cut = document["difference"][0]["numbers"]
    cut = {n["place"]: n["difference"] for n in cut if n["quantity"] == "value"}
    assert len(listed) > 4
    assert cut == {place: whole[place] for place in listed}
    silenced = views("--view", "attribution", "--ablate", "L1", *changed[4:])
    numbers = silenced["difference"][0]["numbers"]
    parts = {n["place"]: n["difference"] for n in numbers if n["quantity"] == "value"}
    assert {f"part L1.{name}" for name in ("H0", "attn.bias", "mlp", "mlp.bias")} <= set(parts)
    (moved,) = (n["difference"] for n in numbers if n["quantity"] == "sum_of_parts")
    assert sum(parts.values()) == pytest.approx(moved, abs=1e-4)
    for view, place, quantity in (
        (["why", "--versus", "id:9"], None, "adds"),
        (["mlp", "--layer", 2, "--rows", 3], "part L2.N5", "norm"),
    ):
        document = views("--view", *view, *changed)
        numbers = [n for n in document["difference"][0]["numbers"]
                   if n["quantity"] == quantity and n["table"]]  # fmt: skip
        tables = ("neurons",) if place else ("parts_for", "parts_against")
        listed = {f"part {row['part']}" for key in ("views", "baseline")
                  for table in tables for row in document[key][0][table]}  # fmt: skip
        assert {n["place"] for n in numbers} == listed
    document = views("--view", "next", "--rows", 3, *changed)
    listed = {row["token"]["id"] for key in ("views", "baseline")
              for row in document[key][0]["candidates"]}  # fmt: skip
    numbers = document["difference"][0]["numbers"]
    assert {n["token"]["id"] for n in numbers if n["quantity"] == "prob"} == listed
    assert len(listed) > 3


def test_of_one_head_each_weight_has_its_difference(views):
    head = ["--view", "attention", "--layer", 2, "--head", 1]
    document = views(*head, "--ablate", "L0.mlp", "--baseline")
    queries = [document[key][0]["queries"] for key in ("baseline", "views")]
    numbers = {n["place"]: n for n in document["difference"][0]["numbers"]
               if n["quantity"] == "weights"}  # fmt: skip
    assert len(numbers) == sum(len(row["weights"]) for row in queries[0])
    place = numbers["position 5 source 3"]
    assert (place["untouched"], place["changed"]) == tuple(q[5]["weights"][3] for q in queries)


def test_views_of_different_tokens_are_not_held_against_each_other(views):
    document = views("--view", "attribution", "--ablate", "L0", "--ablate", "L2", "--baseline")
    (difference,) = document["difference"]
    if document["views"][0]["token"] != document["baseline"][0]["token"]:
        assert difference["n_numbers"] == 0
        assert "--token" in difference["notes"][1]
    else:  # or the test needs another change
        pytest.fail("both runs have the same likeliest token")


def test_numbers_about_another_thing_are_left_out_and_said():
    @dataclass(frozen=True, slots=True)
    class Made(View):
        name = "made"
        compared = ("lead", "prob")
        about = {"rival": ("lead", "parts")}  # noqa: RUF012
        rival: Token
        lead: float
        prob: float
        parts: tuple

    def made(id, value):
        return Made(Token(id, b"a"), value, value, (Part(0, "L0.H1", value),))

    same, other = difference(made(1, 0.5), made(1, 1.0)), difference(made(2, 0.5), made(1, 1.0))
    assert [d.quantity for d in same.numbers] == ["lead", "prob", "value"]
    assert [d.quantity for d in other.numbers] == ["prob"]
    assert len(same.notes) == 1
    assert "rival of its own" in other.notes[1]


def test_what_is_said_to_be_about_another_field_is_a_field():
    for view in (why.Why, head.Head):
        names = {field.name for field in fields(view)}
        assert view.about
        for one, others in view.about.items():
            assert {one, *others} <= names
    assert {name for name in (f.name for f in fields(why.Why)) if name.startswith("rival_")} <= set(
        why.Why.about["rival"]
    )


ASIDE = {  # how well numbers add up, what is beyond --rows, and constants
    "residual", "tolerance", "sum_of_absolutes", "rest", "divisor", "score_error", "weight_error",
    "z_error",
}  # fmt: skip


def test_every_fact_that_a_change_can_move_is_compared():
    for name, entry in VIEWS.items():
        if not entry.prompt or entry.experiment or entry.proof:
            continue
        module = import_module(f"llmcli.inspection.{name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, View) and kind.__module__.endswith(name):
                floats = {f.name for f in fields(kind) if "float" in str(f.type)}
                assert floats - ASIDE <= {*kind.compared, "w_out"}, kind
            if isinstance(kind, type) and issubclass(kind, Row) and kind is not Row:
                told = [*kind.key, *kind.about, *(x for of in kind.about.values() for x in of)]
                assert set(told) <= {f.name for f in fields(kind)}, kind


def test_numbers_of_rows_that_are_no_single_token_or_layer_are_compared(views):
    asked = ["--ablate", "L0.H1", "--baseline", "--token", "id:7"]

    def numbers(name, *more):
        document = views("--view", name, *asked, *more)
        (told,) = document["difference"]
        return document, {(n["table"], n["place"], n["quantity"]): n for n in told["numbers"]}

    document, found = numbers("residual")
    for before, after in zip(document["baseline"][0]["norms"], document["views"][0]["norms"],
                             strict=True):  # fmt: skip
        n = found["norms", f"norm {after['norm']}", "variance_before"]
        pair = (before["variance_before"], after["variance_before"])
        assert (n["untouched"], n["changed"]) == pair
    document, found = numbers("mlp", "--layer", 1)
    neurons = [{row["part"]: row for row in d[0]["neurons"]} for d in
               (document["baseline"], document["views"])]  # fmt: skip
    for part in neurons[0].keys() & neurons[1].keys():
        n = found["neurons", f"part {part}", "after"]
        assert (n["untouched"], n["changed"]) == tuple(rows[part]["after"] for rows in neurons)
    for table, place, _ in found:
        assert table != "promotions" or place.startswith("neuron ")
    _, found = numbers("head", "--layer", 1, "--head", 0)
    assert {("", f"number {i}", "q") for i in range(8)} <= found.keys()
    assert ("", "", "score_error") not in found


def test_a_picture_compares_all_that_json_does(views, llmcli, model_folder):
    """What the change took away altogether is no longer among the rows that a picture shows."""
    asked = ["--ablate", "L0.mlp", "--baseline", "--token", "id:7"]
    for name in ("attribution", "ablation", "lens", "embed"):
        (told,) = views("--view", name, *asked)["difference"]
        drawn = llmcli("inspect", PROMPT, "-m", model_folder, "--view", name, *asked,
                       "--color", "always", "--quiet")  # fmt: skip
        plain = re.sub(r"\x1b\[[\d;]*m", "", drawn.stdout)
        assert f"{told['n_moved']} of {told['n_numbers']} number" in plain, name


@pytest.mark.parametrize("columns", [80, 120])
def test_the_picture_of_a_difference_fits(columns, llmcli, model_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    done = llmcli("inspect", PROMPT, "-m", model_folder, *all_views(), "--view", "attention",
                  "--ablate", "L0.H1", "--baseline", "--color", "always")  # fmt: skip
    plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout)
    for title in ("untouched", "changed: --ablate L0.H1", "difference"):
        assert plain.count(f"── {title} ──") == 1
    assert re.search(r"difference  of view lens · \d+ of \d+ numbers moved", plain)
    drawn = re.sub(r"  deeper: (.*\\\n)*.*\n", "", plain)  # a command is as long as its prompt
    assert max(map(len, drawn.splitlines())) <= columns


def test_saved_pictures_say_which_run_they_are_of(llmcli, model_folder, tmp_path):
    path = tmp_path / "both.html"
    done = llmcli("inspect", PROMPT, "-m", model_folder, "--view", "lens", "--ablate", "L0.H1",
                  "--baseline", "--save", path, "--quiet")  # fmt: skip
    assert done.exit_code == 0, done.output
    titles = re.findall("── (.*?) ──", path.read_text())
    assert titles == ["untouched", "changed: --ablate L0.H1", "difference"]


def test_tensors_of_a_change_are_both_logits(views, tmp_path):
    from safetensors.torch import load_file

    path = tmp_path / "all.safetensors"
    document = views("--view", "change", "--ablate", "L0", "--tensors", path)
    held = load_file(path)
    assert held["change.logits"].shape == (len(document["ids"]), 300)
    assert not torch.equal(held["change.logits"], held["change.untouched_logits"])


def test_mistakes_are_told_before_the_model_is_loaded(llmcli, model_folder, monkeypatch):
    monkeypatch.setattr("llmcli.gpt.weights.load_model", pytest.fail)
    common = ["inspect", PROMPT, "-m", model_folder]
    done = llmcli(*common, "--knockout", "L1: 99 -> 2")
    assert done.exit_code == 2
    assert "^ the prompt has" in done.stderr
    assert_fails(llmcli(*common, "--baseline"), 2, "nothing is changed")
    done = llmcli(*common, "--view", "model", "--ablate", "L0")
    assert "Not used by --view model: the prompt, --ablate" in done.stderr
    long = llmcli("inspect", "xyz " * 40, "-m", model_folder, "--view", "tokens", "--ablate", "L0")
    assert_fails(long, 2, "a change is about one")


def test_rows_line_up_by_what_they_are_about_and_only_then():
    @dataclass(frozen=True, slots=True)
    class Made(View):
        name = "made"
        compared = ("share",)
        parts: tuple
        lens: tuple
        size: int = 3
        share: float = 0.5

    a, b = Token(1, b"a"), Token(2, b"b")
    before = Made((Part(0, "L0.H1", 2.0), Part(1, "L0.mlp", 1.0)), (Guess("0", a, 0.5, 1.0),))
    after = Made((Part(0, "L0.mlp", 4.0), Part(1, "L1.H0", 3.0)), (Guess("0", b, 0.9, 1.5),),
                 4, 0.25)  # fmt: skip
    told = [(d.place, d.quantity, d.difference) for d in difference(after, before).numbers]
    assert told == [
        ("", "share", -0.25),  # a size is no answer
        ("part L0.mlp", "value", 3.0),  # wherever it stands; nor is where it stands
        ("after 0", "kl_bits", 0.5),  # and not the probability of two different tokens
    ]
    heads = [(Source(3, a, weight, layer, 2, 0.9),) for layer, weight in ((1, 0.5), (4, 0.25))]
    told = difference(Made((), heads[1]), Made((), heads[0])).numbers
    assert [d.quantity for d in told] == ["share", "weight"]  # head 2 of another layer is another
