"""The words of pages 1 to 10: from the question to the vector that enters the first block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli.render.drawing import bar
from llmcli.render.walk.layout import Words, nums, pct, said, small, tiny, tok
from llmcli.units import plural

if TYPE_CHECKING:
    from llmcli.inspection.walk.spaces import Lookup, Projection, Vectors
    from llmcli.inspection.walk.stream import Embedding, Norm
    from llmcli.inspection.walk.vocab import Logits, Prediction, Softmax, Tokens, VocabSpace


def prediction(f: Prediction) -> Words:
    rows = [f"{tok(g.token)} {pct(g.prob)}  {bar(g.prob, 40).rstrip()}" for g in f.guesses]
    return Words("One question, asked again and again", [
        "A language model answers one question: given a text, how probable is each possible next "
        "piece of it? After your prompt this model answers:",
        [*rows, f"{'all others':<14} {pct(f.rest)}"],
        "Nothing is looked up in a store of sentences. A model is trained: its numbers are changed "
        "in small steps until it gives more probability to what really came next in the training "
        "texts. So a probability here says how the model expects such a text to go on, not whether "
        "what it says is true.",
        f"The pages that follow show how these {f.vocab_size} probabilities come about.",
    ], ("inspect {} --view next",))  # fmt: skip


def tokens(f: Tokens) -> Words:
    rows = [f"{'position':>8} {'token':<20} {'id':>6} {'bytes':>6}"]
    rows += [f"{p.position:8} {tok(p.token, 20)} {p.token.id:6} {p.n_bytes:6}" for p in f.pieces]
    more = f.n_tokens - len(f.pieces)
    before = " The token at position 0 is put before every text." if f.n_prefix == 1 else ""
    return Words("Text becomes tokens, tokens become ids", [
        f"The model never sees letters. A tokenizer cuts the text into tokens, pieces from a fixed "
        f"vocabulary of {f.vocab_size}, and puts a number in place of each: its id. The "
        f"{plural(f.n_bytes, 'byte')} of your text make{'s' * (f.n_bytes == 1)} "
        f"{plural(f.n_tokens - f.n_prefix, 'id')}"
        f"{f', {f.n_tokens} with what is put before it' if f.n_prefix else ''}"
        f"{f', of which {more} in the middle are not shown' if more else ''}:",
        rows,
        "Common words tend to be one token, rare ones several. In this kind of tokenizer a space "
        "usually belongs to the token after it." + before,
        "An id is a label, not a quantity: the model never computes with it, it only says which "
        "row of a table to take (page 7).",
    ], ("inspect {} --view tokens",))  # fmt: skip


def logits(f: Logits) -> Words:
    rows = [f"{'position':>8} {'token':<14} {'likeliest next':<14} {'logit':>8}  "
            f"{'really next':<14} {'logit':>8}"]  # fmt: skip
    for r in f.rows:
        came = f"{tok(r.came)} {r.came_logit:8.2f}" if r.came else "?"
        line = f"{r.position:8} {tok(r.token)} {tok(r.best)} {r.best_logit:8.2f}  {came}"
        rows.append(line)
    return Words("A vector of logits for every position", [
        f"At every position the model gives {f.vocab_size} numbers, one for each token of the "
        "vocabulary: the higher, the better this token would fit next. They are called logits. "
        f"The {plural(f.n_tokens, 'token')} give{'s' * (f.n_tokens == 1)} a matrix of "
        f"{f.n_tokens} × {f.vocab_size} = {f.n_logits:,} "
        f"logits. {'Some of its' if len(f.rows) < f.n_tokens else 'Its'} rows:",
        rows,
        "All rows come out of the same pass, and each has seen only its own token and those before "
        "it. In training each row but the last can be compared with the token that really came. "
        "To go on with the text, only the last row is needed.",
    ], ("inspect {} --view tokens",))  # fmt: skip


def vocab_space(f: VocabSpace) -> Words:
    axes = [*f.first, f.highest, f.lowest]
    notes = [""] * len(f.first) + ["the highest", "the lowest"]
    rows = [f"{'axis':<20} {'id':>6} {'coordinate':>11}"]
    rows += [f"{tok(a.token, 20)} {a.token.id:6} {a.logit:11.2f}  {note}".rstrip()
             for a, note in zip(axes, notes, strict=True)]  # fmt: skip
    return Words("Vocab space: an axis for every token", [
        f"{f.vocab_size} numbers are the coordinates of a point in a space of {f.vocab_size} "
        "dimensions, one for each token. Call it vocab space. After position "
        f"{f.position}, {said(f.token)}, the logits are this point:",
        rows,
        f"The mean of all coordinates is {f.mean:z.2f}.",
        "A token itself is a point of this space too: 1 on its own axis and 0 on all others, a "
        "one-hot vector. The model's way starts at such vectors, one for each token of the prompt, "
        f"leads through a space of {f.n_embd} dimensions, and comes back to vocab space at the "
        "end.",
    ], ("inspect {} --view sampling",))  # fmt: skip


def softmax(f: Softmax) -> Words:
    rows = []
    for e in f.examples:
        exps = " ".join(f"{x:.1e}" if x < 0.01 else f"{x:.2f}" for x in e.exps)
        rows.append(f"{small(e.logits):<13} e^x: {exps:<26} shares: {nums(e.probs, 2, 5)}")
    yours = [f"{'token':<14} {'logit':>8} {'below best':>10} {'e^-that':>10} {'share':>9}"]
    yours += [f"{tok(s.token)} {s.logit:8.2f} {s.below_best:10.2f} {s.exp:10.3f} {pct(s.prob):>9}"
              for s in f.shares]  # fmt: skip
    return Words("Logits against probabilities: softmax", [
        "A logit can be any number. Softmax makes probabilities of logits: raise e to the power of "
        "each, then divide each result by their sum. All become positive and add up to 1.",
        rows,
        "Both examples give the same, for only differences count: adding one number to all logits "
        "multiplies every power by the same factor, and the division takes it out again. So one "
        f"logit alone says nothing; a logit higher by 1 means {f.e:.2f} times the probability.",
        f"For your prompt, counted down from the best logit (the powers add up to {f.total:.3f}):",
        yours,
    ], ("inspect {} --view sampling",))  # fmt: skip


def vectors(f: Vectors) -> Words:
    rows = [f"{'a':<8} {'b':<9} {'|a|':>5} {'|b|':>6} {'a·b':>7} {'cosine':>7}"]
    rows += [f"{small(p.a):<8} {small(p.b):<9} {p.length_a:5.1f} {p.length_b:6.1f} {p.dot:7.1f} "
             f"{p.cosine:7.2f}" for p in f.pairs]  # fmt: skip
    names = {"nearest": "nearest by cosine", "likely": "likely to follow", "first": "in the prompt"}
    yours = [f"{'token':<14} {'|b|':>6} {'a·b':>7} {'cosine':>7}"]
    yours += [f"{tok(o.token)} {o.length:6.2f} {o.dot:7.2f} {o.cosine:7.2f}  {names[o.why]}"
              for o in f.others]  # fmt: skip
    return Words("Vectors: points and directions", [
        "A list of numbers can be read as a point, or as an arrow to that point from the origin: "
        "then it has a length and a direction. The dot product a·b multiplies number by number and "
        "adds up. The length is |a| = √(a·a). The cosine similarity is a·b / (|a| |b|): 1 for the "
        "same direction, 0 for a right angle, -1 for the opposite one.",
        rows,
        "The dot product grows with the lengths; the cosine sees the directions alone. Inside this "
        f"model a token is a vector of {f.n_embd} numbers. Beside {said(f.token)}, of length "
        f"{f.length:.2f}:",
        yours,
        "Single numbers of such vectors need not mean anything; some directions do.",
    ], (f"inspect --view neighbors --token id:{f.token.id}",))  # fmt: skip


def lookup(f: Lookup) -> Words:
    matrix = ["  ".join(f"{value:g}" for value in row) for row in f.matrix]
    return Words("One-hot times matrix: looking up a row", [
        "A vector times a matrix is a sum of the matrix's rows, each multiplied by one number of "
        "the vector. If the vector is one-hot, a single row is left:",
        [f"{'':14}{matrix[0]}", f"{small(f.one_hot)}  ×  {matrix[1]}  =  {small(f.row)}",
         f"{'':14}{matrix[2]}"],
        f"So the first step of the model, one-hot vectors times a matrix of {f.vocab_size} × "
        f"{f.n_embd}, needs none of its {f.n_products:,} multiplications: it reads row "
        f"{f.token.id} for {said(f.token)}. The first numbers, multiplied out and looked up:",
        [f"multiplied {nums(f.product)}", f"looked up  {nums(f.looked_up)}"],
        f"The largest difference in all {f.n_embd} numbers is {tiny(f.max_difference)}. This table "
        "is the token embedding; its rows were learned like all else.",
    ], ("inspect {} --view embed",))  # fmt: skip


def projection(f: Projection) -> Words:
    rows = [f"{small(p)} × {small(f.onto)}  =  {image:g}"
            for p, image in zip(f.points, f.images, strict=True)]  # fmt: skip
    if f.n_embd > f.head_dim:
        lost = (f"Layer {f.layer}, head {f.head} makes its query of {f.head_dim} numbers from "
                f"{f.n_embd}. Of your last position's vector, {100 * f.kept:.1f} % of the squared "
                "length lies in the directions that this query depends on; to the rest it is "
                "blind.")  # fmt: skip
    else:
        lost = "This model's heads are as wide as the stream, so their queries need not lose any."
    of = f"{f.n_back} of your prompt's {f.n_different} different tokens"
    if f.n_different == 1:
        of = "your prompt's one token" + ("" if f.n_back else " never")
    elif f.n_tried < f.n_different:
        of = f"{f.n_back} of {f.n_tried} of your prompt's {f.n_different} different tokens"
    return Words("A matrix as a projection between spaces", [
        "Any other vector gives a mixture of rows. The matrix leads from a space with as many "
        "dimensions as it has rows to one with as many as it has columns. In this field that is "
        "called a projection (in geometry only what would change nothing more if done again).",
        "Into a space of fewer dimensions something is always lost: different points arrive at the "
        "same place.",
        rows,
        lost,
        f"Also {f.vocab_size} tokens in {f.n_embd} dimensions cannot all be told apart by right "
        "angles" + ("" if f.vocab_size > f.n_embd else " unless they are that few") + ". Sent "
        f"through the embedding and straight back through the output matrix, {of} "
        "came back with the highest number.",
    ], (f"inspect --view neighbors --token id:{f.token.id}",))  # fmt: skip


def embedding(f: Embedding) -> Words:
    rows = [f"{'vector':<10} {'length':>7}   first numbers"]
    rows += [f"{v.name:<10} {v.length:7.3f} {nums(v.first)}" for v in f.vectors]
    return Words("Token embedding plus position embedding", [
        f"Two tables start the computation. The token embedding, {f.vocab_size} × {f.n_embd}, has "
        f"a row for each token. The position embedding, {f.n_ctx} × {f.n_embd}, has a row for "
        f"each place in the context. For position {f.position}, {said(f.token)}, row "
        f"{f.token.id} of one and row {f.position} of the other are added, number by number:",
        rows,
        f"The sum enters the first block (difference from the model's own: "
        f"{tiny(f.max_difference)}). So the same word at two places starts as two different "
        "vectors. Without the position row it would be the same vector wherever it stands; only "
        "the causal mask (page 13) would still give a hint of the order.",
        "Adding loses little as long as the two kinds of row use different directions, which "
        "training is free to arrange.",
    ], ("inspect {} --view embed", "inspect --view positions"))  # fmt: skip


def norm(f: Norm) -> Words:
    rows = [f"{'':<14} {'mean':>7} {'variance':>9} {'length':>8}   first numbers"]
    rows += [f"{s.name:<14} {s.mean:z7.3f} {s.variance:9.4f} {s.length:8.3f} "
             f"{nums(s.first[:3])}" for s in f.stages]  # fmt: skip
    return Words("Layer norm: every vector to a common scale", [
        "Before each computation a copy of the vector is rescaled. Layer norm takes off the mean "
        "of its numbers, then divides by their standard deviation. Then each number is multiplied "
        "by a learned gain, and a learned bias is added. For the vector that enters the first "
        f"block at position {f.position}, {said(f.token)}:",
        rows,
        f"Mean and variance are over the {f.n_embd} numbers of this one vector; positions do not "
        f"mix. Before the root is taken, {f.eps:.1e} is added to the variance, so that nothing is "
        "divided by zero; that is why it need not be exactly 1 afterwards.",
        f"There are {f.n_norms} such norms here: two in each of "
        f"{plural(f.n_layer, 'block')} and one at the end. By hand and by the model "
        f"differ by {tiny(f.max_difference)} at most.",
    ], ("inspect {} --view residual",))  # fmt: skip
