"""The safetensors header of a checkpoint: the name, dtype, shape and place of every tensor.

A file is the header's length (8 bytes, little-endian), the header (JSON), then the tensors end to
end, without a gap (format: https://github.com/huggingface/safetensors). A large checkpoint is
several such files, the shards, and an index that says which tensor lies in which.

The files come from strangers: every length is checked before it is trusted, and whatever passes
here, the safetensors library opens. What the names and the numbers mean is not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO, TypeGuard

from llmcli.errors import IntegrityError, NotFoundError, UnsupportedModelError, shown, shown_path

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLE = ("pytorch_model*.bin", "*.pt", "*.pth")
_NEVER_LOADED = (*_PICKLE, "tf_model.h5", "flax_model.msgpack", "*.onnx")

_MAX_HEADER_NBYTES = 100_000_000  # the library's own limit
_MAX_INDEX_NBYTES = 64 * 2**20
_SAMPLES, _SAMPLE_NBYTES = 32, 4096  # of each tensor: some percent of GPT-2, less of a larger one
_MAX_INT = 2**63 - 1  # no honest size is larger, and the library counts in 64 bits

# The dtypes that every safetensors >= 0.5 knows; F4 and F6, below one byte, are not among them.
_NBYTES_OF_DTYPE = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint: its bytes are `file[start : start + nbytes]`."""

    name: str
    dtype: str  # as the file says it: "F32", "F16", "BF16", "I64", "U8", ...
    shape: tuple[int, ...]
    file: Path
    start: int  # from the beginning of the file, not of its data
    nbytes: int


def read_checkpoint(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of the model in `folder`, by name: of one file, or of all the index's shards.

    Raises NotFoundError where weights are missing or unreadable, IntegrityError where they
    contradict themselves or the index, UnsupportedModelError where they are not safetensors.
    """
    try:
        names = set(os.listdir(folder))
    except OSError as error:
        raise unreadable(folder, error) from error
    if _WEIGHTS in names:
        return read_header(folder / _WEIGHTS)
    if _INDEX in names:
        return _read_shards(folder, names)
    raise _no_weights(folder, names)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor of one safetensors file, by name; raises what `read_checkpoint` raises."""
    with _opened(path) as (file, size):
        prefix = file.read(8)
        if prefix == b"version ":
            raise NotFoundError(
                f"{shown_path(path)} is a Git LFS pointer, not the weights.",
                "Run `git lfs pull` in its folder.",
            )
        if len(prefix) < 8:
            raise _damaged(path, f"the file is truncated: 8 bytes expected, {len(prefix)} there")
        length = int.from_bytes(prefix, "little")
        if not 0 < length <= _MAX_HEADER_NBYTES:
            raise _damaged(path, f"a header of {length} bytes (1 to {_MAX_HEADER_NBYTES} can be)")
        data = 8 + length
        if data > size:
            raise _damaged(path, f"the file is truncated: {data} bytes expected, {size} there")
        header = _parse_object(path, file.read(length))

    if not _is_str_to_str(header.pop("__metadata__", {})):
        raise _damaged(path, "its __metadata__ does not map strings to strings")
    tensors = {name: _tensor(path, name, entry, data) for name, entry in header.items()}
    _check_coverage(path, tensors, data, size)
    return tensors


def file_hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """What tells each file of weights from others: its size, and two hashes.

    The one is of its header: which tensors. The other is of samples of each tensor as well, of a
    small one all: training changes nearly every number, an edit at least a good part of a tensor.
    """
    tensors = sorted(read_checkpoint(folder).values(), key=lambda info: (info.file, info.start))
    found = {}
    for path, infos in groupby(tensors, key=lambda info: info.file):
        with _opened(path) as (file, size):
            prefix = file.read(8)
            digest = hashlib.sha256(prefix + file.read(int.from_bytes(prefix, "little")))
            of_header = digest.hexdigest()
            for info in infos:
                stride = max(_SAMPLE_NBYTES, -(-info.nbytes // _SAMPLES))
                for start in range(0, info.nbytes, stride):
                    file.seek(info.start + start)
                    digest.update(file.read(min(_SAMPLE_NBYTES, info.nbytes - start)))
        found[path.name] = {
            "nbytes": size, "header_sha256": of_header, "sampled_sha256": digest.hexdigest(),
        }  # fmt: skip
    return found


def _tensor(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    """The tensor that `entry` describes, its offsets moved by `data`, where the header ends."""
    tensor = f"tensor '{shown(name)}'"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{tensor} is not described by dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape):
        raise _damaged(path, f"the shape of {tensor} is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(path, f"the data_offsets of {tensor} are not a begin and an end")
    if not isinstance(dtype, str):
        raise _damaged(path, f"the dtype of {tensor} is not a string")
    if dtype not in _NBYTES_OF_DTYPE:
        raise UnsupportedModelError(
            f"{shown_path(path)} holds {tensor} as {shown(dtype)}, a dtype not supported here.",
            "Choose a model or a revision in F32, F16 or BF16.",
        )
    begin, end = offsets
    nbytes = _NBYTES_OF_DTYPE[dtype]
    for size in shape:
        nbytes *= size
        if nbytes > _MAX_INT:  # stops here: the product of a million sizes would take minutes
            raise _damaged(path, f"the shape of {tensor} is larger than any file")
    if nbytes != end - begin:
        kind = f"{dtype} {shown(str(shape))}"
        raise _damaged(path, f"{tensor}, {kind}, needs {nbytes} bytes and has {end - begin}")
    return TensorInfo(name, dtype, tuple(shape), path, data + begin, nbytes)


def _check_coverage(path: Path, tensors: dict[str, TensorInfo], data: int, size: int) -> None:
    """Each tensor begins where the one before it ends, from `data` to the file's end at `size`."""
    end = data
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.nbytes)):
        if tensor.start != end:
            relation = "overlaps" if tensor.start < end else "leaves a hole after"
            raise _damaged(path, f"tensor '{shown(tensor.name)}' {relation} the one before it")
        end += tensor.nbytes
    if end > size:
        raise _damaged(path, f"the file is truncated: {end} bytes expected, {size} there")
    if end < size:
        raise _damaged(path, f"{size - end} bytes follow the last tensor")


def _read_shards(folder: Path, names: set[str]) -> dict[str, TensorInfo]:
    """Every tensor of every shard, each shard opened once and held to what the index says."""
    index = folder / _INDEX
    named: dict[str, set[str]] = defaultdict(set)  # shard -> the tensors it should hold
    for tensor, shard in _read_weight_map(index).items():
        named[shard].add(tensor)

    tensors: dict[str, TensorInfo] = {}
    for shard, expected in named.items():
        if not _is_plain(shard):
            raise _damaged(index, f"'{shown(shard)}' is not the plain name of a file beside it")
        if shard not in names:
            raise NotFoundError(
                f"{shown_path(index)} names the shard '{shown(shard)}', which is not there.",
                "Get the missing file with `llmcli download`.",
            )
        held = read_header(folder / shard)
        if astray := expected ^ held.keys():
            tensor = min(astray)
            found = "is in" if tensor in held else "is not in"
            detail = f"tensor '{shown(tensor)}' {found} '{shown(shard)}', and it says otherwise"
            raise _damaged(index, detail)
        tensors |= held
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> shard's file name, as the index has it; its other keys say nothing we need."""
    with _opened(index) as (file, size):
        if size > _MAX_INDEX_NBYTES:
            raise _damaged(index, f"it has {size} bytes (at most {_MAX_INDEX_NBYTES} can be)")
        weight_map = _parse_object(index, file.read(size)).get("weight_map")
    if not _is_str_to_str(weight_map) or not weight_map:
        raise _damaged(index, "its weight_map does not map tensor names to file names")
    return weight_map


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size in bytes; what the system refuses, now or later, is NotFoundError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # before opening: to open a FIFO is to wait
            raise NotFoundError(
                f"{shown_path(path)} is not a regular file.", "Name the folder of another model."
            )
        with path.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise unreadable(path, error) from error


def _parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """The JSON object in `text`, read no more kindly than the library's own parser reads it."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_int=_natural)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its JSON cannot be read ({shown(str(error), 160)})") from error
    if not isinstance(value, dict):
        raise _damaged(path, "its JSON is not an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key comes twice, and no string holds half a character."""
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"duplicate key '{shown(key)}'")
        for text in (key, value):
            if isinstance(text, str):
                text.encode()  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
        table[key] = value
    return table


def _natural(digits: str) -> int | float:
    """A JSON integer; below zero it stays a float, so that "-0" is not taken for a size."""
    return float(digits) if digits.startswith("-") else int(digits)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether this is a list of integers from 0 to 2**63 - 1; True and 1.0 are not integers."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_INT for n in value)


def _is_str_to_str(value: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_plain(name: str) -> bool:
    """Whether `name` stays in its folder on every system: no separator, drive, "..", or NUL."""
    return name not in ("", "..") and "\0" not in name and PureWindowsPath(name).name == name


def _no_weights(folder: Path, names: set[str]) -> NotFoundError | UnsupportedModelError:
    """Why `folder`, which holds `names`, is no checkpoint: other formats only, or nothing."""
    others = sorted(n for n in names if any(fnmatch(n, pattern) for pattern in _NEVER_LOADED))
    if others and not any(name.endswith(".safetensors") for name in names):
        return UnsupportedModelError(
            f"{shown_path(folder)} has no safetensors weights, only '{shown(others[0])}', "
            "and pickle is never loaded: it can run code.",
            "Convert the model to safetensors, or pick a revision that has it.",
        )
    return NotFoundError(
        f"{shown_path(folder)} has neither {_WEIGHTS} nor {_INDEX}.",
        "Get a model with `llmcli download`, or name the folder of one.",
    )


def unreadable(path: Path, error: OSError) -> NotFoundError:
    """What to say where the system refuses a file of weights."""
    reason = error.strerror or type(error).__name__
    return NotFoundError(
        f"{shown_path(path)} cannot be read: {reason}.", "Check the path and its permissions."
    )


def _damaged(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{shown_path(path)} is damaged: {what}.", "Download it again.")
