"""What the pages of the guided walk are about, in their order. Imported without torch."""

from __future__ import annotations

TOPICS = (
    "prediction", "tokens", "logits", "vocab_space", "softmax", "vectors", "lookup", "projection",
    "embedding", "norm", "qkv", "scores", "mask", "context", "heads", "shortcut", "feed_forward",
    "blocks", "unembed", "choosing", "repeating", "cache", "chat", "parameters", "changing",
)  # fmt: skip
