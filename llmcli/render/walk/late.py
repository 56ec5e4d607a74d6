"""The words of pages 11 to 25: attention, the stream, and what is done with the logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmcli.render.walk.layout import Words, nums, pct, said, tiny, tok
from llmcli.units import plural, sized

if TYPE_CHECKING:
    from llmcli.inspection.walk.after import Cache, Changing, Chat, Choosing, Parameters, Repeating
    from llmcli.inspection.walk.heads import Context, Heads, Mask, Qkv, Scores
    from llmcli.inspection.walk.stream import Blocks, FeedForward, Shortcut, Unembed


def qkv(f: Qkv) -> Words:
    rows = [f"{v.name:<8} length {v.length:7.3f}   {nums(v.first)}" for v in f.vectors]
    return Words("Queries, keys, values", [
        "Attention lets a position collect from itself and those before it. In each head a learned "
        f"projection from {f.n_embd} to {f.head_dim} numbers (with a bias) makes three vectors of "
        "every position: a query (what is wanted here), a key (what can be found here), a value "
        "(what is handed on).",
        f"We follow layer {f.layer}, head {f.head}, of {plural(f.n_head, 'head')}, at position "
        f"{f.position}, {said(f.token)}: there it reads {100 * f.read_weight:.1f} % from position "
        f"{f.read_position}, {said(f.read_token)}."
        + ("" if f.asked or not f.chosen else " No head reads more from one token between the "
           "first and this one; --layer and --head choose another."),
        rows,
    ], (f"inspect {{}} --view head --layer {f.layer} --head {f.head}",))  # fmt: skip


def scores(f: Scores) -> Words:
    rows = [f"{'position':>8} {'token':<14} {'q·k':>9} {'score':>9} {'weight':>9}"]
    rows += [f"{r.position:8} {tok(r.token)} {r.dot:9.3f} {r.score:9.3f} {pct(r.weight):>9}"
             for r in f.rows]  # fmt: skip
    if f.scale == 1:
        scaling = "; this model does not scale it. Most do: else sums"
    else:
        times = f", which is 1/√{f.head_dim}" if f.by_head_dim and not f.by_layer else ""
        scaling = f" times {f.scale:.4g}{times}. Without scaling, sums"
    return Words("Scores and scaling", [
        f"The query of position {f.position} meets "
        f"{'the one key' if f.n_seen == 1 else f'each of the {f.n_seen} keys'} it may see. A "
        f"score is their dot product{scaling} of many products would tend to be "
        "large, and softmax would give nearly all to one. "
        + ("Those with the largest weights:" if len(f.rows) < f.n_seen else "All of them:"),
        rows,
    ], (f"inspect {{}} --view head --layer {f.layer} --head {f.head}",))  # fmt: skip


def mask(f: Mask) -> Words:
    rows = []
    for r in f.rows:
        left = " ".join("  -inf" if s is None else f"{s:6.2f}" for s in r.scores)
        rows.append(f"{tok(r.token, 8)} {left}  │{nums(r.weights, 2, 5)}")
    hidden = (
        f"{f.n_hidden:,} of this head's scores become{'s' * (f.n_hidden == 1)} minus infinity"
        if f.n_hidden
        else "nothing does here, after a single token"
    )
    return Words("The causal mask, and softmax", [
        f"A position must not see what comes after it: {hidden}. "
        "Softmax makes each row positive weights that add up to 1, and 0 where the "
        "mask is. Scores on the left, weights on the right, for the first positions:",
        rows,
    ], (f"inspect {{}} --view attention --layer {f.layer} --head {f.head}",))  # fmt: skip


def context(f: Context) -> Words:
    rows = [f"{r.position:8} {tok(r.token)} {pct(r.weight)} {nums(r.first)}" for r in f.rows]
    if f.n_others:
        others = plural(f.n_others, "other")
        rows.append(f"{'':8} {others:<14} {pct(f.others_weight)} {nums(f.others)}")
    rows.append(f"{'':8} {'sum':<14} {'':8} {nums(f.total)}")
    return Words("Weighted values: the context vector", [
        "Each value is multiplied by its weight, and the results are added. The sum is this "
        "position's context vector, a mixture of what it has read. Its first numbers:",
        rows,
        f"The model's own vector of {f.head_dim} numbers differs by {tiny(f.max_difference)} at "
        "most.",
    ], (f"inspect {{}} --view head --layer {f.layer} --head {f.head}",))  # fmt: skip


def heads(f: Heads) -> Words:
    rows = [f"head {h.head:3}  reads most from {h.position:4} {tok(h.token)} {pct(h.weight)}  "
            f"writes {h.length:8.3f}" for h in f.rows]  # fmt: skip
    if f.n_others:
        others = f"{plural(f.n_others, 'other')}, at most"
        rows.append(f"{others:>53} {f.others_length:8.3f}")
    return Words("Several heads and their projection", [
        (f"The {f.n_head} heads of layer {f.layer} do this at once, each with its own matrices. "
         f"Their vectors end to end are" if f.n_head > 1 else
         f"Layer {f.layer} has this one head. Its vector is")
        + f" {f.width} numbers; one more matrix and a bias project them "
        f"to {f.n_embd}. That equals a sum: each head writes its own vector, of this length:",
        rows,
        f"Bias {f.bias_length:.3f}, the whole {f.sum_length:.3f} long; lengths do not add up, as "
        f"directions differ. The sum and the model differ by {tiny(f.max_difference)} at most.",
    ], (f"inspect --view circuits --layer {f.layer} --head {f.head}",))  # fmt: skip


def shortcut(f: Shortcut) -> Words:
    rows = [f"{s.name:<14} length {s.length:8.3f}   cosine to before {s.cosine:6.3f}"
            for s in f.steps]  # fmt: skip
    return Words("Shortcuts: each step adds to what is there", [
        "The output of attention does not replace the vector; it is added to it, and so is that of "
        f"the feed-forward network. In layer {f.layer}:",
        rows,
        f"What runs through is the residual stream: here a sum of {f.n_terms} vectors in the end. "
        "Later layers can read what earlier ones wrote, and in training the way back is as short.",
    ], ("inspect {} --view residual",))  # fmt: skip


def feed_forward(f: FeedForward) -> Words:
    curve = "   ".join(f"{p.x:g} → {p.y:.3f}" for p in f.curve)
    rows = [f"neuron {n.neuron:6}  before {n.before:8.3f}  after {n.after:8.3f}" for n in f.neurons]
    return Words("Feed-forward: each position by itself", [
        f"A matrix takes the normed vector from {f.n_embd} to {f.mlp_dim} numbers "
        f"({f.times_as_wide:.3g} times as wide), an activation ({f.activation}) bends each, and a "
        "second matrix leads back. The activation, and the strongest neurons:",
        [curve, *rows],
        f"{f.n_below} of {f.mlp_dim} were below 0. With nothing between them, two matrices are no "
        "more than one; the bend is what makes two worth having. Queries, keys, values, embedding "
        "and output have no activation: they only project.",
    ], (f"inspect {{}} --view mlp --layer {f.layer}",))  # fmt: skip


def blocks(f: Blocks) -> Words:
    rows = [f"after {r.after:<6} length {r.length:9.3f}   {tok(r.best)} {pct(r.prob)}"
            for r in f.rows]  # fmt: skip
    each = "each" if len(f.rows) > f.n_layer else f"{len(f.rows) - 1} of them"
    return Words("Many blocks, one after another", [
        "Norm, attention, add, norm, feed-forward, add: that is a block. "
        + (f"There are {f.n_layer}, alike in build, each with its own numbers. "
           if f.n_layer > 1 else "There is one. ")
        + f"What the stream would say after {each}, read "
        "through the final norm and output matrix:",
        rows,
        "Those were trained for the last block's output alone; early readings are rough.",
    ], ("inspect {} --view lens",))  # fmt: skip


def unembed(f: Unembed) -> Words:
    rows = [f"{tok(r.token)} |row| {r.length:7.3f}  cosine {r.cosine:6.3f}  logit {r.logit:8.3f}"
            for r in f.rows]  # fmt: skip
    return Words("The final norm, and back to vocab space", [
        f"A last norm gives a vector of length {f.length:.3f}. Its dot product with each of the "
        f"{f.vocab_size} rows of the output matrix is that token's logit"
        + (" (here the token embedding again)" if f.tied else "") + ":",
        rows,
        "Logit = length of the vector × length of the row × cosine, before rounding.",
    ], (f"inspect {{}} --view attribution --token id:{f.rows[0].token.id}",))  # fmt: skip


def choosing(f: Choosing) -> Words:
    rows = [f"{'token':<14} {'model':>9} {f'T={f.cold_temperature}':>9} "
            f"{f'T={f.hot_temperature}':>9} {f'top {f.top_k}':>9} {f'top-p {f.top_p}':>9}"
    ]  # fmt: skip
    rows += [f"{tok(r.token)} " + " ".join(f"{pct(x):>9}" for x in (
        r.prob, r.cold, r.hot, r.top_k, r.top_p)) for r in f.rows]  # fmt: skip
    return Words("Choosing a token", [
        f"Greedy takes the most probable, {said(f.greedy)}. Otherwise a token is drawn. A "
        "temperature T divides the logits first: below 1 the likely tokens gain, above 1 the "
        "unlikely ones. Top-k keeps the k most probable, top-p the fewest that together reach p, "
        f"here {f.n_kept}; what is left is scaled up to 100 % again:",
        rows,
    ], (f"inspect {{}} --view sampling --top-k {f.top_k}",))  # fmt: skip


def repeating(f: Repeating) -> Words:
    rows = [f"{s.n_tokens:6} {'token ' if s.n_tokens == 1 else 'tokens'} seen → {tok(s.token)} "
            f"{pct(s.prob)}" for s in f.steps]  # fmt: skip
    return Words("And again, one token longer", [
        "The chosen token is appended, and the model is asked again. Greedily:",
        rows or ["The context is full: nothing can be appended."],
        f"It ends at an end-of-text token, a limit, or a context of {f.n_ctx} tokens. What was "
        "chosen is not taken back.",
    ], ("generate {} --temperature 0 --top-probs 5",))  # fmt: skip


def cache(f: Cache) -> Words:
    same = "" if f.max_difference is None or f.token is None else (
        f" With and without it, the logits after {said(f.token)} differ by "
        f"{tiny(f.max_difference)} at most.")  # fmt: skip
    return Words("The KV cache", [
        "As no position sees a later one, earlier keys and values stay as they are when a token is "
        f"appended. They are kept: {f.n_kept} numbers a token, {sized(f.token_nbytes)}; "
        f"{sized(f.prompt_nbytes)} for your prompt, {sized(f.full_nbytes)} for a full context.",
        f"The next step then computes 1 position instead of {f.n_computed}." + same
        if f.token else "Your prompt fills the context: there is no next step.",
    ], ("inspect {} --view check",))  # fmt: skip


def chat(f: Chat) -> Words:
    end = ""
    if f.eos is not None:
        its = f"its end token, {said(f.eos)}, has" if f.n_eos == 1 else (
            f"its {f.n_eos} end tokens, {said(f.eos)} the first, have together")  # fmt: skip
        end = f" Now {its} a probability of {f.eos_prob:.1e}."
    return Words("A chatbot is a transcript that the model continues", [
        "A chat program writes the conversation as one text, with marks for who speaks, and lets "
        "the model continue it until a mark or an end token comes." + end,
        "The model itself keeps nothing between calls: each answer starts from the whole "
        f"transcript, or what fits in {f.n_ctx} tokens. Your prompt fills {f.n_tokens}. Models for "
        "chat are trained further on such transcripts; the computation is the same.",
    ], ('generate "User: Hello! Assistant:" --stop "User:"',))  # fmt: skip


def parameters(f: Parameters) -> Words:
    rows = [f"{g.name:<20} {g.count:13,} {pct(g.share)}" for g in f.groups]
    return Words("What the parameters are", [
        f"All that was learned are {f.total:,} numbers:",
        rows,
        f"One of them, the first of the row of {said(f.token)}, is {f.example:.4f}. Nobody set it "
        "by hand, and what one number means by itself is not known. What can be tested is what "
        "happens when something is changed: the next page.",
    ], ("inspect --view model",))  # fmt: skip


def changing(f: Changing) -> Words:
    untouched, *_, steered = f.outcomes
    names = {"untouched": "untouched", "without": f"without {f.ablate}", "steered": "steered"}
    rows = [f"{'':<18} {'likeliest':<23}   {tok(f.best, 9)}   {tok(f.towards, 9)}"]
    rows += [f"{names[o.name]:<18} {tok(o.top)} {pct(o.top_prob)}   {pct(o.best_prob):>9}   "
             f"{pct(o.steered_prob):>9}" for o in f.outcomes]  # fmt: skip
    return Words("Take a part out, strengthen a direction", [
        f"Head {f.ablate}, which we followed, set to zero; or a direction added to the stream "
        f"leaving layer {f.steer_layer}: what {said(f.towards)} has more than the mean of your "
        f"prompt, {f.added:.3g} long where the stream is {f.stream:.3g}. The likeliest next token, "
        "and what became of the first choice and of what was steered to:",
        rows,
        "A steered model need not say that text; it may go on as if it had just read it."
        + " Here it became less likely: what later layers make of a direction depends on all "
        "that is in the stream." * (steered.steered_prob < untouched.steered_prob),
    ], (f"inspect {{}} --ablate {f.ablate} --baseline",
        f"inspect {{}} --steer '{f.steer}' --baseline"))  # fmt: skip
