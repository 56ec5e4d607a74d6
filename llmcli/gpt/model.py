"""A decoder-only transformer: one forward for every family, in reading order.

What differs between models is in `ModelConfig`; this file names no family, reads no files and
keeps no state between calls: cache and tap are arguments. Sources: "Attention Is All You Need"
(arXiv:1706.03762), "Language Models are Unsupervised Multitask Learners" (GPT-2, 2019).

Shapes: B batch, T tokens in this call, S tokens seen, C n_embd, H n_head, D head_dim, M mlp_dim,
V vocab_size.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.config import ModelConfig
from llmcli.gpt.activation import ACTIVATIONS
from llmcli.gpt.cache import KVCache, Past
from llmcli.gpt.kernels import has_amx
from llmcli.gpt.linear import COARSE, Linear
from llmcli.gpt.tap import Tap

NO_TAP = Tap()
QUERIES = 64  # at once in a prompt on a CPU: their scores stay in its caches


def causal_mask(T: int, S: int, device: torch.device) -> Tensor:
    """True where query i of the last T tokens may see key j <= i of S: (T, S)."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(diagonal=S - T)


def visible(T: int, S: int, pad: Tensor | None, device: torch.device) -> Tensor | None:
    """Which keys each query may see: (T, S), or (B, 1, T, S) with padding; None: all of them."""
    if pad is not None:
        seen = torch.arange(S, device=device) >= pad[:, None]  # (B, S)
        # A padding row sees itself, so that its softmax has something to sum.
        itself = torch.arange(S - T, S, device=device)[:, None] == torch.arange(S, device=device)
        return (causal_mask(T, S, device) & seen[:, None, None, :]) | itself
    if T == 1:
        return None  # the newest token sees everything
    return causal_mask(T, S, device)


def kept_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of keys and values in `dtype`: to attend in bfloat16 takes a CPU 3 to 15 times as long."""
    return torch.float32 if device.type == "cpu" else dtype


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, tap: Tap, coarse: bool
) -> Tensor:
    """softmax(q k^T * scale + mask) v: (B, H, T, D), in q's dtype. Eq. 1 of arXiv:1706.03762.

    Computed in the dtype of k and v, which may be finer. All at once, unless a tap asks for what
    lies in between: the two agree to the last bits (`attention_at_once` names the exception).
    `coarse` says that q, k and v are no finer than bfloat16, whatever they are in.
    """
    if not (tap.wants("scores") or tap.wants("pattern")):
        return attention_at_once(q, k, v, mask, scale, coarse)
    scores = q.to(k.dtype) @ k.transpose(-2, -1) * scale  # (B, H, T, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    scores = tap("scores", scores)
    pattern = tap("pattern", scores.softmax(dim=-1))
    return (pattern @ v).to(q.dtype)  # (B, H, T, D)


def attention_at_once(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, coarse: bool
) -> Tensor:
    """The same by torch's fused kernel, or in blocks: what is faster.

    A long prompt that is coarse already is attended to in bfloat16 where AMX makes it twice as fast
    as fp32.
    """
    causal = mask is not None and mask.dim() == 2 and mask.shape[0] == mask.shape[1]
    on_cpu = q.device.type == "cpu" and not torch.is_grad_enabled()
    long = causal and on_cpu and q.shape[2] > QUERIES
    by_amx = long and coarse and has_amx()
    dtype, its = torch.bfloat16 if by_amx else k.dtype, q.dtype
    if not its == k.dtype == dtype:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if long and not by_amx:
        z = attention_in_blocks(q, k, v, scale)
    else:
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if causal else mask, is_causal=causal, scale=scale
        )
    return z if its == dtype else z.to(its)


def attention_in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same of T queries and their own T keys, QUERIES at a time: (B, H, T, D).

    A block meets no more keys than it may see. On a CPU this takes three quarters of the time of
    the fused kernel, whose products are smaller.
    """
    B, H, T, D = q.shape
    q, k = q * scale, k.transpose(-2, -1)
    z = q.new_empty(B, T, H, D).transpose(1, 2)  # as it will be read: a head beside the other
    later = ~causal_mask(QUERIES, QUERIES, q.device)
    for start in range(0, T, QUERIES):
        end = min(T, start + QUERIES)
        scores = q[:, :, start:end] @ k[..., :end]  # (B, H, QUERIES, end)
        n = end - start
        scores[..., start:].masked_fill_(later[:n, :n], -math.inf)
        z[:, :, start:end] = scores.softmax(dim=-1) @ v[:, :, :end]
    return z


def embedding(n: int, width: int) -> nn.Embedding:
    """A table of `n` vectors, not initialised: on `meta`, that alone would import a compiler."""
    return nn.Embedding.from_pretrained(torch.empty(n, width), freeze=False)


class Attention(nn.Module):
    """Multi-head self-attention; x, mask and past as in `Block`."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.scale = config.attn_scale(layer)
        width = config.n_head * config.head_dim
        self.qkv = Linear(config.n_embd, 3 * width)
        self.out = Linear(width, config.n_embd)

    @property
    def w_qkv(self) -> Tensor:
        """The matrices that make each head's q, k and v: (3, H, D, C)."""
        return self.qkv.weight.view(3, self.n_head, self.head_dim, -1)

    @property
    def w_out(self) -> Tensor:
        """W_O, cut into what brings each head's z back into the stream: (C, H, D)."""
        return self.out.weight.view(-1, self.n_head, self.head_dim)

    def forward(self, x: Tensor, mask: Tensor | None, past: Past | None, tap: Tap) -> Tensor:
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, H, T, D) each
        q, k, v = tap("q", q), tap("k", k), tap("v", v)
        if past is not None:
            k, v = past.append(k, v)  # (B, H, S, D)
        elif k.dtype != (kept := kept_in(k.dtype, k.device)):
            k, v = k.to(kept), v.to(kept)
        coarse = self.qkv.storage in COARSE
        z = tap("z", attention(q, k, v, mask, self.scale, tap, coarse))  # (B, H, T, D)
        return self.out(z.transpose(1, 2).reshape(B, T, -1))  # (B, T, C)


class MLP(nn.Module):
    """The feed-forward network, each position by itself: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.n_embd, config.mlp_dim)
        self.down = Linear(config.mlp_dim, config.n_embd)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, tap: Tap) -> Tensor:
        pre = tap("mlp_pre", self.up(x))  # (B, T, M)
        post = tap("mlp_post", self.activation(pre))
        return self.down(post)  # (B, T, C)


class Block(nn.Module):
    """A layer, its norms before what they norm: x (B, T, C) -> (B, T, C).

    `mask` is what `visible` makes, `past` this layer's part of the cache, if there is one.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd, eps=config.norm_eps)
        self.attn = Attention(config, layer)
        self.norm_2 = nn.LayerNorm(config.n_embd, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, past: Past | None, tap: Tap) -> Tensor:
        x = tap("resid_pre", x)
        attn_in = tap("norm_1", self.norm_1(x))
        x = tap("resid_mid", x + tap("attn_out", self.attn(attn_in, mask, past, tap)))
        mlp_in = tap("norm_2", self.norm_2(x))
        return tap("resid_post", x + tap("mlp_out", self.mlp(mlp_in, tap)))


class GPT(nn.Module):
    """Token ids in, next-token logits out.

    `storage` is how its weights are to be stored: "float32", "bfloat16", "float16", "int8" or
    "int4". A layer's own may differ, where its shape is not for 4 bits.
    """

    def __init__(self, config: ModelConfig, storage: str = "float32") -> None:
        super().__init__()
        self.config, self.storage = config, storage
        self.token_embedding = embedding(config.vocab_size, config.n_embd)
        self.position_embedding = embedding(config.n_ctx, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm_f = nn.LayerNorm(config.n_embd, eps=config.norm_eps)
        self.head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    def forward(
        self,
        ids: Tensor,
        cache: KVCache | None = None,
        tap: Tap = NO_TAP,
        last_only: bool = False,
    ) -> Tensor:
        """Next-token logits for `ids` (B, T): (B, T, V), or (B, 1, V) with `last_only`.

        With a cache, `ids` follow the tokens it holds and are added to it. T plus the tokens seen
        must not exceed `n_ctx`.
        """
        start = cache.length if cache is not None else 0
        x = self.stream(ids, cache, tap)
        if last_only:
            x, start = x[:, -1:], start + ids.shape[1] - 1
        return self.unembed(x, start, tap)

    @property
    def device(self) -> torch.device:
        return self.norm_f.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the residual stream is computed in."""
        return self.norm_f.weight.dtype

    @property
    def token_vectors(self) -> Tensor:
        """The token embedding in what is computed in; it is kept as the file has it: (V, C)."""
        return self.token_embedding.weight.to(self.dtype)

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of cached keys and values."""
        return kept_in(self.dtype, self.device)

    def new_cache(self, batch: int, capacity: int, pad: Tensor | None = None) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens."""
        return KVCache(self.config, batch, capacity, self.cache_dtype, self.device, pad)

    def block(self, layer: int) -> Block:
        return cast(Block, self.blocks[layer])

    def stream(self, ids: Tensor, cache: KVCache | None, tap: Tap) -> Tensor:
        """The residual stream after the last block, for `ids` (B, T): (B, T, C)."""
        T = ids.shape[1]
        start = cache.length if cache is not None else 0
        pad = cache.pad if cache is not None else None
        where = torch.arange(T, device=ids.device)[None] if cache is None else cache.positions(T)
        x = self.embed(ids, where, tap.at(start))
        mask = visible(T, start + T, pad, ids.device)
        return self.through(x, mask, cache.extend(T) if cache is not None else None, start, tap)

    def embed(self, ids: Tensor, positions: Tensor, tap: Tap) -> Tensor:
        """The residual stream's first value, token vector plus position vector: (B, T, C)."""
        tokens = tap("embed", self.token_embedding(ids).to(self.dtype))
        return tokens + tap("pos_embed", self.position_embedding(positions).expand_as(tokens))

    def through(
        self, x: Tensor, mask: Tensor | None, past: Past | None, start: int, tap: Tap
    ) -> Tensor:
        """The residual stream through all blocks: (B, T, C) -> (B, T, C)."""
        pasts = past.layers() if past is not None else [None] * len(self.blocks)
        for layer, (block, its_past) in enumerate(zip(self.blocks, pasts, strict=True)):
            x = block(x, mask, its_past, tap.at(start, layer))
        return x

    def unembed(self, x: Tensor, start: int, tap: Tap) -> Tensor:
        """Final norm and output head: (B, T, C) -> (B, T, V)."""
        tap = tap.at(start)
        return tap("logits", self.head(tap("norm_f", self.norm_f(x))))
