"""How fable came to be: a tokenizer and a small GPT-2, trained from scratch on simple stories.

    python tools/train_fable.py --corpus CORPUS_FOLDER --run runs/fable --steps 5000
    python tools/train_fable.py --corpus CORPUS_FOLDER --run runs/second --steps 2500 --seed 2 \
        --start llmcli/models/fable --dropout 0.15
    python tools/train_fable.py --run runs/second --export llmcli/models/fable

The first command trains, and when it is run again it goes on from its last checkpoint; another
`--steps` moves the end of the schedule. The second trains a finished model further: the learning
rate goes up once more, half as high, and down again (warm restarts, arXiv:1608.03983). The third
writes a Hugging Face folder. Needs the `dev` extra. Seeded: the same steps give the same data in
the same order.

What is here, in order: the tokenizer, the loss, the optimizers, the loop, the export; the data are
those of fable_data.py.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from evaluate_fable import SEPARATOR, bits_per_byte
from fable_data import EOT_ID, N_CTX, Corpus
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from llmcli.config import ModelConfig
from llmcli.gpt.model import GPT
from llmcli.gpt.tap import Tap
from llmcli.gpt.weights import load_model, to_checkpoint

CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 4096,
    "n_positions": N_CTX,
    "n_embd": 256,
    "n_layer": 8,
    "n_head": 4,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": True,
    "dtype": "float16",
}
GENERATION = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.95,
    "top_k": 0,
}
BATCHES_PER_STEP = 2
WARMUP_STEPS = 100
DECAY_SHARE = 0.5  # of the steps, at the end, in which the learning rate falls to zero
MATRIX_LR, OTHER_LR = 0.01, 2e-3
RESTART_LR = 0.5  # of these, for a model that has been trained before
AVERAGE = 0.995  # what the running average of the weights keeps at each step


# --- the tokenizer -------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE (arXiv:1508.07909, on bytes as GPT-2 does it) that starts a text with EOT."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, EOT_ID)]
    )
    return tokenizer


def padded(batch: list[list[int]], device: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) of a batch; targets of padding are -100, which no loss counts."""
    longest = max(len(window) for window in batch)
    inputs = torch.tensor([w[:-1] + [EOT_ID] * (longest - len(w)) for w in batch])
    targets = torch.tensor([w[1:] + [-100] * (longest - len(w)) for w in batch])
    return inputs.to(device), targets.to(device)


# --- the loss ------------------------------------------------------------------------------------


class Dropout(Tap):
    """Zeroes a share of what is written into the residual stream (arXiv:1207.0580).

    The rows of a batch share their zeros, which spares most of the random numbers. It asks for
    the attention pattern because on a CPU the explicit attention's backward pass is the faster one.
    """

    points = frozenset({"embed", "attn_out", "mlp_out"})

    def __init__(self, share: float, explicit: bool) -> None:
        self.share, self.explicit = share, explicit

    def wants(self, name: str) -> bool:
        return self.explicit and name == "pattern"

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if name not in self.points:
            return value
        return value * F.dropout(torch.ones_like(value[:1]), self.share)


class LinearCrossEntropy(torch.autograd.Function):
    """sum of -log softmax(x W^T)[target], with its gradients, 512 rows at a time.

    The gradient of the loss by the logits is softmax - one_hot. Made while the logits of a chunk
    are still in the processor's cache, it spares writing (N, V) logits out and reading them back.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # type: ignore[no-untyped-def,override]
        dtype = torch.bfloat16
        weight_low = weight.to(dtype)
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros_like(weight)
        total = torch.zeros((), device=x.device)
        for rows in torch.arange(len(x), device=x.device).split(512):
            x_low, target = x[rows].to(dtype), targets[rows, None].clamp(min=0)
            counts = targets[rows, None] >= 0  # padding is not scored
            logits = (x_low @ weight_low.t()).float()  # (512, V)
            largest = logits.amax(1, keepdim=True)
            hit = logits.gather(1, target)
            probs = logits.sub_(largest).exp_()
            norm = probs.sum(1, keepdim=True)
            total += ((norm.log() + largest - hit) * counts).sum()
            probs.mul_(counts / norm).scatter_add_(1, target, -counts.float())
            grad = probs.to(dtype)
            grad_x[rows] = (grad @ weight_low).to(x.dtype)
            grad_weight += grad.t() @ x_low
        ctx.save_for_backward(grad_x, grad_weight)
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):  # type: ignore[no-untyped-def,override]
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * scale, grad_weight * scale, None


def train_step(model: GPT, batch: list[list[int]], n_targets: int, tap: Tap, device: str) -> float:
    """Add the gradients of one batch; its share of the mean loss in nats per token."""
    inputs, targets = padded(batch, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        x = model.norm_f(model.stream(inputs, None, tap)).flatten(0, 1)  # (B * T, C)
    loss = LinearCrossEntropy.apply(x.float(), model.head.weight, targets.flatten()) / n_targets
    loss.backward()
    return loss.item()


# --- the optimizers ------------------------------------------------------------------------------


def initialise(model: GPT) -> None:
    """GPT-2's initialisation: normal, std 0.02; what writes into the stream is scaled down."""
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(weight)
        elif weight.dim() == 2:
            writes = name.endswith(("attn.out.weight", "mlp.down.weight"))
            depth = math.sqrt(2 * model.config.n_layer) if writes else 1.0
            torch.nn.init.normal_(weight, std=0.02 / depth)


def optimizers(model: GPT) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the blocks' matrices, AdamW (arXiv:1711.05101) for the rest.

    Muon makes each update orthogonal, so that all directions of a matrix learn alike; embeddings,
    biases and norms are looked up or added, not multiplied, and stay with AdamW.
    """
    matrices = [w for w in model.blocks.parameters() if w.dim() == 2]
    of_blocks = {id(w) for w in matrices}
    others = [w for w in model.parameters() if id(w) not in of_blocks]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LR, momentum=0.95, weight_decay=0.1),
        torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def lr_factor(step: int, steps: int) -> float:
    """Up in a line, level, down to zero in a line; the end moves with `steps`, the rest stays."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return warm * min(1.0, max(0.0, steps - step) / (DECAY_SHARE * steps))


# --- the loop ------------------------------------------------------------------------------------


def train(
    run: Path,
    corpus_folder: Path,
    steps: int,
    seed: int,
    device: str,
    dropout: float,
    start: Path | None,
) -> None:
    """Train until `steps`; a checkpoint every 100 steps, written beside and then moved.

    The weights and the tokenizer are new, or those of the model in the folder `start`.
    """
    run.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(corpus_folder, seed)
    path = run / "tokenizer.json"
    if not path.exists():
        if start:
            shutil.copyfile(start / "tokenizer.json", path)
        else:
            train_tokenizer(corpus.stories + corpus.ccby).save(str(path))
    tokenizer = Tokenizer.from_file(str(path))

    torch.manual_seed(seed)
    model = GPT(ModelConfig.from_hf(CONFIG)).to(device)
    if start:
        model.load_state_dict(load_model(start, model.config).state_dict())
    else:
        initialise(model)
    average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optims = optimizers(model)
    base_lrs = [group["lr"] for optim in optims for group in optim.param_groups]
    state = {"step": 0, "epoch": 0, "batch": 0, "train_s": 0.0, "tokens": 0}
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        average, state = load_checkpoint(checkpoint, model, optims)
    log(run, event="start", steps=steps, seed=seed, parameters=n_parameters(model), **state)

    tap = Dropout(dropout, explicit=device == "cpu")
    epoch = corpus.epoch(state["epoch"], tokenizer)
    losses: list[float] = []
    while state["step"] < steps:
        started = time.perf_counter()
        if state["batch"] + BATCHES_PER_STEP > len(epoch):
            state["epoch"], state["batch"] = state["epoch"] + 1, 0
            epoch = corpus.epoch(state["epoch"], tokenizer)
        group = epoch[state["batch"] : state["batch"] + BATCHES_PER_STEP]
        n_targets = sum(len(window) - 1 for batch in group for window in batch)
        factor = lr_factor(state["step"], steps) * (RESTART_LR if start else 1.0)
        groups = [group for optim in optims for group in optim.param_groups]
        for param_group, lr in zip(groups, base_lrs, strict=True):
            param_group["lr"] = lr * factor
        losses.append(sum(train_step(model, batch, n_targets, tap, device) for batch in group))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                keep = min(AVERAGE, state["step"] / (state["step"] + 10))
                average[name].lerp_(weight, 1 - keep)
        state["step"] += 1
        state["batch"] += BATCHES_PER_STEP
        state["tokens"] += n_targets
        state["train_s"] += time.perf_counter() - started
        if state["step"] % 100 == 0 or state["step"] == steps:
            save_checkpoint(checkpoint, model, average, optims, state)
            row = dict(loss=sum(losses) / len(losses), lr=factor, **state)
            losses.clear()
            if state["step"] % 500 == 0 or state["step"] == steps:
                row["valid_bits_per_byte"] = validate(model, average, tokenizer, corpus.valid[:100])
            log(run, event="step", **row)


def validate(
    model: GPT, average: dict[str, Tensor], tokenizer: Tokenizer, texts: list[str]
) -> float:
    """Bits per byte of the averaged weights on some held-out stories."""
    averaged = GPT(model.config)
    averaged.load_state_dict(average, strict=False)  # the tied head is not listed twice
    return bits_per_byte(
        averaged, lambda t: tokenizer.encode(t, add_special_tokens=False).ids, EOT_ID, texts
    )


def load_checkpoint(path: Path, model: GPT, optims):  # type: ignore[no-untyped-def]
    """Put model and optimizers back; the averaged weights, and what was counted by then."""
    saved = torch.load(path, map_location=model.device)
    model.load_state_dict(saved["model"])
    for optim, state in zip(optims, saved["optims"], strict=True):
        optim.load_state_dict(state)
    return saved["average"], saved["state"]


def save_checkpoint(path: Path, model: GPT, average, optims, state) -> None:  # type: ignore[no-untyped-def]
    part = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "average": average,
            "optims": [optim.state_dict() for optim in optims],
            "state": state,
        },
        part,
    )
    part.replace(path)


def log(run: Path, **row: object) -> None:
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
    print(line, flush=True)
    with (run / "log.jsonl").open("a") as file:
        file.write(line + "\n")


def n_parameters(model: GPT) -> int:
    return sum(weight.numel() for weight in model.parameters())


# --- the export ----------------------------------------------------------------------------------


def export(run: Path, folder: Path) -> None:
    """Write the averaged weights (fp16), tokenizer and configs as a Hugging Face folder."""
    saved = torch.load(run / "checkpoint.pt", map_location="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    weights = to_checkpoint(saved["average"])
    tensors = {name: weight.half().contiguous() for name, weight in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    (folder / "tokenizer.json").write_bytes((run / "tokenizer.json").read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--corpus", type=Path, help="folder of the training texts")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--start", type=Path, metavar="FOLDER", help="a model to train further")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the model and stop")
    options = parser.parse_args()
    if options.export:
        export(options.run, options.export)
    else:
        o = options
        train(o.run, o.corpus, o.steps, o.seed, o.device, o.dropout, o.start)


if __name__ == "__main__":
    main()
