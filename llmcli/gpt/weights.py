"""A checkpoint's tensors -> a model's parameters, mapped where they can be.

Pickle is never loaded.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from llmcli import parameters
from llmcli.checkpoint import TensorInfo, read_checkpoint, unreadable
from llmcli.config import ModelConfig
from llmcli.errors import IntegrityError, shown_path
from llmcli.gpt.model import GPT
from llmcli.gpt.packing import maker, packs, replace


class File:
    """A file of weights: the one that was opened, whatever its path names by now.

    Raises NotFoundError where it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.raw = path.open("rb")
        except OSError as error:
            raise unreadable(path, error) from error

    def __del__(self) -> None:
        if hasattr(self, "raw"):
            self.raw.close()

    @cached_property
    def whole(self) -> mmap.mmap:
        """All of it: one mapping, as each takes a descriptor, of which there may be 256."""
        return self._mapped(0, 0)

    def part(self, start: int, nbytes: int) -> tuple[mmap.mmap, int]:
        """A mapping of its own for so many bytes, and where in it they begin."""
        before = start % mmap.ALLOCATIONGRANULARITY
        return self._mapped(start - before, before + nbytes), before

    def _mapped(self, offset: int, nbytes: int) -> mmap.mmap:
        try:
            return mmap.mmap(self.raw.fileno(), nbytes, access=mmap.ACCESS_COPY, offset=offset)
        except ValueError as error:  # the file is shorter than its header said a moment ago
            raise IntegrityError(
                f"{shown_path(Path(self.raw.name))} was changed while it was read.", "Try again."
            ) from error


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file as ours is, or the `transposed` of it; a matrix is read by its rows."""

    file: File
    info: TensorInfo
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape[::-1] if self.transposed else self.info.shape

    def as_dtype(self, dtype: torch.dtype | None) -> Tensor:
        """All of it; if it is stored so (None: it is), mapped with the whole file."""
        if dtype in (None, DTYPES[self.info.dtype]):
            return self._tensor(self.file.whole, self.info.start, self.info.shape)
        return self[:].to(dtype)

    def __getitem__(self, rows: slice) -> Tensor:
        """Those rows, in the file's dtype: in memory only as long as somebody has them."""
        info, (n, *others) = self.info, self.info.shape
        start, stop, _ = (slice(None) if self.transposed else rows).indices(n)
        row_nbytes = info.nbytes // n
        part = self.file.part(info.start + start * row_nbytes, (stop - start) * row_nbytes)
        found = self._tensor(*part, (stop - start, *others))
        return found[rows] if self.transposed else found

    def _tensor(self, pages: mmap.mmap, offset: int, shape: Sequence[int]) -> Tensor:
        dtype = DTYPES[self.info.dtype]
        theirs = torch.frombuffer(pages, dtype=dtype, count=prod(shape), offset=offset).view(*shape)
        return theirs.t() if self.transposed else theirs


DTYPES = dict(zip(parameters.DTYPES, (torch.float32, torch.float16, torch.bfloat16), strict=True))


def load_model(
    folder: Path,
    config: ModelConfig,
    storage: str = "float32",
    device: torch.device | str = "cpu",
    rows: int = 1,
    unpacked: bool = False,
) -> GPT:
    """The model in `folder`, with weights in float32, bfloat16, float16, int8 or int4 (`storage`).

    What the file has so already stays memory-mapped. The last three are ways in which linear layers
    store their weights while everything is computed in fp32; a GPU computes in float16 itself.
    Where layers store weights in their own way, the token embedding stays as the file has it;
    float32 they do so where a decode step will have many `rows`. `unpacked` leaves float16 to be
    packed when `packing.pack` is called, since a prompt needs no packed weights.
    Raises IntegrityError where the file and the config contradict each other.
    """
    on_cpu = torch.device(device).type == "cpu"
    computes_so = storage in ("float32", "bfloat16") or not on_cpu
    dtype = getattr(torch, storage) if computes_so else torch.float32
    packed = on_cpu and packs(storage, rows)
    with torch.device("meta"):
        model = GPT(config, storage)
    places = parameters.match(folder, read_checkpoint(folder), config)
    files = {path: File(path) for path in {place.info.file for place in places.values()}}
    sources = {
        name: Stored(files[info.file], info, transposed)
        for name, (info, transposed) in places.items()
    }
    weights: dict[str, Tensor] = {}
    if packed:
        _store_linears(model, sources, storage, unpacked)
    left = {name for name, weight in model.named_parameters() if weight.is_meta}
    for name in sources.keys() & left:
        as_it_is = packed and name == "token_embedding.weight"
        weight = sources[name].as_dtype(None if as_it_is else dtype).to(device)
        weights[name] = weight if on_cpu else weight.contiguous()  # row after row, for its kernel
    model.load_state_dict(weights, strict=False, assign=True)
    if config.tie_embeddings and not packed:
        model.head.weight = model.token_embedding.weight
    return model.eval().requires_grad_(False)


def _store_linears(model: GPT, sources: Mapping[str, Stored], storage: str, unpacked: bool) -> None:
    """Make every linear layer one that stores its weights so, the largest first.

    While that is converted there is little else in memory.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    of = {name: sources[f"{name}.weight"] for name in names if f"{name}.weight" in sources}
    of.setdefault("head", sources["token_embedding.weight"])  # where they are tied

    def made(name: str) -> nn.Module:
        bias = sources.get(f"{name}.bias")
        # An error of the head goes straight into the logits: it keeps 8 bits.
        kind = "int8" if storage == "int4" and name == "head" else storage
        layer = maker(kind, of[name].shape, unpacked)
        return layer(of[name], bias.as_dtype(torch.float32) if bias else None)

    names.sort(key=lambda name: -of[name].info.nbytes)
    replace(model, {name: partial(made, name) for name in names})


def to_checkpoint(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters under the names, and in the layout, of a Hugging Face GPT-2 file."""
    theirs = {source.name: (name, source) for name, source in parameters.GPT2.items() if source}
    out: dict[str, Tensor] = {}
    for name, weight in weights.items():
        pattern, layer = parameters.pattern_of(name)
        their_name, source = theirs[pattern]
        prefix = "" if their_name == parameters.HEAD else parameters.PREFIX
        out[prefix + their_name.format(layer)] = weight.t() if source.transposed else weight
    return out
