"""`llmcli.checkpoint` against hostile files, and against the safetensors library itself."""

from __future__ import annotations

import ast
import json
import os
import random
import struct
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

import llmcli.checkpoint
from llmcli.checkpoint import TensorInfo, file_hashes, read_checkpoint, read_header
from llmcli.errors import IntegrityError, LLMCLIError, NotFoundError, UnsupportedModelError

NUMPY_DTYPES = {
    "BOOL": "bool", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "F16": "f2", "U32": "u4",
    "I32": "i4", "F32": "f4", "U64": "u8", "I64": "i8", "F64": "f8",
}  # fmt: skip


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def blob(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file; `header` is JSON text, its bytes, or what `json.dumps` takes."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def library_accepts(content: bytes) -> bool:
    try:
        safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return False
    return True


F32 = json.dumps(entry())
GOOD = blob({"a": entry(), "b": entry(offsets=[4, 8])}, bytes(8))


# One file: what is accepted


def test_a_header_gives_the_name_dtype_shape_and_place_of_each_tensor(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "w": entry("BF16", [3, 2], [0, 12])}
    path = write(tmp_path / "model.safetensors", blob(header, bytes(12)))
    start = path.stat().st_size - 12
    assert read_header(path) == {"w": TensorInfo("w", "BF16", (3, 2), path, start, 12)}


ACCEPTED = {
    "no tensors": blob("{}"),
    "spaces around the header": blob(f' {{"a": {F32}}}   ', bytes(4)),
    "a scalar": blob({"a": entry(shape=[])}, bytes(4)),
    "empty tensors between others": blob(
        {"z": entry(shape=[0, 9], offsets=[4, 4]), "a": entry(), "y": entry("U8", [0], [0, 0])},
        bytes(4),
    ),
    "data in another order than the header": blob(
        {"a": entry(offsets=[4, 8]), "b": entry()}, bytes(8)
    ),
    "an empty name": blob({"": entry()}, bytes(4)),
    "a name outside ASCII": blob({"wörter.語": entry()}, bytes(4)),
}


@pytest.mark.parametrize("content", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_an_unusual_but_valid_file_is_accepted_as_by_the_library(
    tmp_path: Path, content: bytes
) -> None:
    tensors = read_header(write(tmp_path / "x.safetensors", content))
    expected = {name: tuple(info["shape"]) for name, info in safetensors.deserialize(content)}
    assert {name: info.shape for name, info in tensors.items()} == expected


@pytest.mark.parametrize("dtype", llmcli.checkpoint._NBYTES_OF_DTYPE)
def test_every_dtype_has_the_size_that_the_library_gives_it(tmp_path: Path, dtype: str) -> None:
    nbytes = 3 * llmcli.checkpoint._NBYTES_OF_DTYPE[dtype]
    content = blob({"a": entry(dtype, [3], [0, nbytes])}, bytes(nbytes))
    assert library_accepts(content)
    assert read_header(write(tmp_path / "x.safetensors", content))["a"].nbytes == nbytes


# One file: what is refused

MANY = json.dumps(entry(shape=[2**62] * 100_000, offsets=[0, 0]))
REFUSED = {
    # case: (content, a telling piece of the message)
    "empty": (b"", "truncated: 8 bytes expected, 0 there"),
    "seven bytes": (bytes(7), "truncated: 8 bytes expected, 7 there"),
    "header of zero bytes": (bytes(8) + b"{}", "a header of 0 bytes"),
    "header past the end": (struct.pack("<Q", 99) + b"{}", "truncated: 107 bytes expected, 10"),
    "header of 2 GB": (struct.pack("<Q", 2 * 10**9) + b"{}", "a header of 2000000000 bytes"),
    "header of 2**64 - 1": (b"\xff" * 8 + b"{}", "a header of 18446744073709551615 bytes"),
    "not UTF-8": (blob(b'{"\xff": 1}'), "JSON cannot be read ('utf-8' codec"),
    "byte order mark": (blob(b"\xef\xbb\xbf{}"), "JSON cannot be read (Unexpected UTF-8 BOM"),
    "not JSON": (blob("weights"), "JSON cannot be read (Expecting value"),
    "NUL after the JSON": (blob("{}\0"), "JSON cannot be read (Extra data"),
    "raw control character": (blob(f'{{"a\x01": {F32}}}', bytes(4)), "Invalid control character"),
    "lone surrogate in a name": (blob(f'{{"\\ud800": {F32}}}', bytes(4)), "surrogates"),
    "lone surrogate in metadata": (blob('{"__metadata__": {"a": "\\udfff"}}'), "surrogates"),
    "deep nesting": (blob("[" * 200_000), "JSON cannot be read (maximum recursion depth"),
    "deep objects": (blob('{"a":' * 200_000), "JSON cannot be read (maximum recursion depth"),
    "array": (blob("[]"), "not an object"),
    "null": (blob("null"), "not an object"),
    "duplicate tensor": (blob(f'{{"a": {F32}, "a": {F32}}}', bytes(4)), "duplicate key 'a'"),
    "duplicate dtype": (blob(f'{{"a": {{"dtype": "U8", {F32[1:]}}}', bytes(4)), "key 'dtype'"),
    "entry is a list": (blob({"a": ["F32", [1], [0, 4]]}, bytes(4)), "tensor 'a' is not described"),
    "entry with an unknown key": (blob({"a": entry() | {"x": 1}}, bytes(4)), "not described by"),
    "entry without dtype": (blob({"a": {"shape": [], "data_offsets": [0, 4]}}), "not described by"),
    "entry without shape": (blob({"a": {"dtype": "F32", "data_offsets": [0, 4]}}), "not described"),
    "entry without offsets": (blob({"a": {"dtype": "F32", "shape": [1]}}), "not described by"),
    "dtype is a number": (blob({"a": entry(32)}, bytes(4)), "dtype of tensor 'a' is not a string"),
    "dtype is a list": (blob({"a": entry(["F32"])}, bytes(4)), "dtype of tensor 'a' is not a"),
    "shape is a number": (blob({"a": entry(shape=1)}, bytes(4)), "shape of tensor 'a' is not"),
    "shape is negative": (blob({"a": entry(shape=[-1])}, bytes(4)), "shape of tensor 'a' is not"),
    "shape is negative twice": (blob({"a": entry(shape=[-1, -1])}, bytes(4)), "is not a list of"),
    "shape is minus zero": (
        blob('{"a": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}'),
        "shape of tensor 'a' is not",
    ),
    "shape is a float": (blob({"a": entry(shape=[1.0])}, bytes(4)), "shape of tensor 'a' is not"),
    "shape is a bool": (blob({"a": entry(shape=[True])}, bytes(4)), "shape of tensor 'a' is not"),
    "shape is text": (blob({"a": entry(shape=["1"])}, bytes(4)), "shape of tensor 'a' is not"),
    "shape is huge": (blob({"a": entry(shape=[0, 2**64], offsets=[0, 0])}), "shape of tensor 'a'"),
    "shape has 5000 digits": (
        blob('{"a": {"dtype": "F32", "shape": [%s], "data_offsets": [0, 4]}}' % ("9" * 5000)),
        "JSON cannot be read",
    ),
    "shape overflows 64 bits to 4": (
        blob({"a": entry("U8", [2**32 + 1, 2**32], [0, 2**32])}),
        "larger than any file",
    ),
    "shape overflows before a zero": (
        blob({"a": entry(shape=[2**62, 8, 0], offsets=[0, 0])}),
        "larger than any file",
    ),
    "shape of 100,000 huge sizes": (blob(f'{{"a": {MANY}}}'), "larger than any file"),
    "offsets are one": (blob({"a": entry(offsets=[4])}, bytes(4)), "data_offsets of tensor 'a'"),
    "offsets are three": (blob({"a": entry(offsets=[0, 4, 4])}, bytes(4)), "data_offsets of"),
    "offsets are floats": (blob({"a": entry(offsets=[0.0, 4.0])}, bytes(4)), "data_offsets of"),
    "offsets are bools": (blob({"a": entry("U8", [1], [False, True])}, b"0"), "data_offsets of"),
    "offsets are negative": (blob({"a": entry(offsets=[-4, 0])}, bytes(4)), "data_offsets of"),
    "offsets are an object": (blob({"a": entry(offsets={"0": 4})}, bytes(4)), "data_offsets of"),
    "offsets run backwards": (blob({"a": entry(shape=[0], offsets=[4, 0])}), "data_offsets of"),
    "offsets past 64 bits": (blob({"a": entry(offsets=[2**64, 2**64 + 4])}), "data_offsets of"),
    "bytes and shape differ": (
        blob({"a": entry(shape=[2])}, bytes(4)),
        "tensor 'a', F32 [2], needs 8 bytes and has 4",
    ),
    "truncated data": (GOOD[:-3], f"truncated: {len(GOOD)} bytes expected, {len(GOOD) - 3} there"),
    "data out of bounds": (
        blob({"a": entry("U8", [2**40], [0, 2**40])}),
        "is truncated: 1099511627868 bytes expected, 92 there",
    ),
    "trailing bytes": (GOOD + b"!", "1 bytes follow the last tensor"),
    "overlap": (
        blob({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)),
        "tensor 'b' overlaps the one before it",
    ),
    "same bytes twice": (blob({"a": entry(), "b": entry()}, bytes(4)), "overlaps the one before"),
    "hole at the start": (blob({"a": entry(offsets=[4, 8])}, bytes(8)), "'a' leaves a hole"),
    "hole in the middle": (
        blob({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)),
        "tensor 'b' leaves a hole",
    ),
    "empty tensor inside another": (
        blob({"a": entry(), "b": entry(shape=[0], offsets=[2, 2])}, bytes(4)),
        "tensor 'b' overlaps",
    ),
    "metadata is a list": (blob({"__metadata__": []}), "__metadata__ does not map strings"),
    "metadata is null": (blob({"__metadata__": None}), "__metadata__ does not map strings"),
    "metadata holds a number": (blob({"__metadata__": {"step": 1}}), "__metadata__ does not map"),
    "metadata holds NaN": (blob('{"__metadata__": {"step": NaN}}'), "__metadata__ does not map"),
    "metadata holds minus zero": (blob('{"__metadata__": {"step": -0}}'), "__metadata__ does not"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "piece"), REFUSED.values(), ids=REFUSED.keys())
def test_a_damaged_file_is_an_integrity_error_that_says_what_is_wrong(
    tmp_path: Path, content: bytes, piece: str
) -> None:
    path = write(tmp_path / "x.safetensors", content)
    with pytest.raises(IntegrityError) as caught:
        read_header(path)
    assert caught.value.fact.startswith(f"{path} is damaged: ")
    assert piece in caught.value.fact
    assert caught.value.remedy == "Download it again."


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "C64", "I4", "f32", "", "F32\x1b"])
def test_an_unknown_or_sub_byte_dtype_is_unsupported_and_named(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "x.safetensors", blob({"odd": entry(dtype, [8])}, bytes(4)))
    with pytest.raises(UnsupportedModelError) as caught:
        read_header(path)
    shown = dtype.replace("\x1b", r"\x1b")
    assert f"tensor 'odd' as {shown}, a dtype" in caught.value.fact


def test_a_git_lfs_pointer_is_named_as_such_with_the_command_that_helps(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    with pytest.raises(NotFoundError, match=r"Git LFS pointer.*git lfs pull"):
        read_header(write(tmp_path / "model.safetensors", pointer))


@pytest.mark.parametrize("length", [2 * 10**9, 10**11, 10**14])
def test_no_memory_is_taken_for_a_header_length_that_lies(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.safetensors", struct.pack("<Q", length) + b"{}")
    os.truncate(path, 200_000_000)  # sparse: longer than any header may be
    assert peak_of_refusing(path) < 1_000_000


def test_no_memory_is_taken_for_a_header_longer_than_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", struct.pack("<Q", 99_000_000) + b"{}")
    assert peak_of_refusing(path) < 1_000_000


def peak_of_refusing(path: Path) -> int:
    """The most bytes that were held at once while `read_header` refused the file."""
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError):
            read_header(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_hundred_thousand_huge_sizes_are_refused_within_a_second(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", REFUSED["shape of 100,000 huge sizes"][0])
    began = time.perf_counter()
    with pytest.raises(IntegrityError):
        read_header(path)
    assert time.perf_counter() - began < 1


def test_only_the_header_of_a_file_is_read(tmp_path: Path) -> None:
    content = blob({"a": entry("U8", [10**9], [0, 10**9])})
    path = write(tmp_path / "x.safetensors", content)
    os.truncate(path, len(content) + 10**9)  # sparse: a gigabyte that takes no disk
    tracemalloc.start()
    try:
        assert read_header(path)["a"].nbytes == 10**9
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_name_in_a_message_is_escaped_and_cut_to_80_characters(tmp_path: Path) -> None:
    name = "\x1b[31m\n\u202e\x9b" + "n" * 500
    path = write(tmp_path / "x.safetensors", blob({name: entry(shape=[9])}, bytes(4)))
    with pytest.raises(IntegrityError) as caught:
        read_header(path)
    shown = str(caught.value).split("'")[1]
    assert str(caught.value).isprintable()
    assert shown.startswith(r"\x1b[31m\n\u202e\x9bn")
    assert shown.endswith("n...")
    assert len(shown) == 80


@pytest.mark.parametrize("piece", [f'{{"%s": {F32}, "%s": 0}}', '{"%s": 1, "%s": 2, "x\x01": 0}'])
def test_no_message_holds_a_control_character(tmp_path: Path, piece: str) -> None:
    header = piece.replace("%s", "\\u001b[2J\\r\\u0007")
    with pytest.raises(IntegrityError) as caught:
        read_header(write(tmp_path / "x.safetensors", blob(header, bytes(4))))
    assert str(caught.value).isprintable()


# One file: what the system refuses


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.safetensors cannot be read: No such file"):
        read_header(tmp_path / "nowhere.safetensors")


def test_a_directory_in_place_of_the_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is not a regular file"):
        read_header(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs in a Windows folder")
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(NotFoundError, match="is not a regular file"):
        read_header(tmp_path / "x.safetensors")


def test_a_file_without_permission_is_not_found_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "x.safetensors", GOOD)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(NotFoundError, match=r"x\.safetensors cannot be read: Permission denied"):
        read_header(path)


# Agreement with the library


METADATA = st.none() | st.dictionaries(st.text("aé\n", max_size=3), st.text("b\x1b", max_size=3))


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.text(max_size=12).filter(is_utf8), max_size=6, unique=True))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shapes = st.lists(st.integers(0, 5), max_size=4)
    return {
        name: random_array(rng, draw(st.sampled_from(sorted(NUMPY_DTYPES))), draw(shapes))
        for name in names
        if name != "__metadata__"
    }


def is_utf8(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def random_array(rng: np.random.Generator, dtype: str, shape: list[int]) -> np.ndarray:
    if dtype == "BOOL":
        return rng.integers(0, 2, shape).astype(bool)
    nbytes = int(np.prod(shape)) * np.dtype(NUMPY_DTYPES[dtype]).itemsize
    return np.frombuffer(rng.bytes(nbytes), NUMPY_DTYPES[dtype]).reshape(shape)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(arrays=arrays(), metadata=METADATA)
def test_what_the_library_saves_is_found_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory,
    arrays: dict[str, np.ndarray],
    metadata: dict[str, str] | None,
) -> None:
    path = tmp_path_factory.getbasetemp() / "saved.safetensors"
    save_file(arrays, path, metadata)
    content = path.read_bytes()
    tensors = read_header(path)
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        info = tensors[name]
        assert (info.name, info.shape, info.file) == (name, array.shape, path)
        assert np.dtype(NUMPY_DTYPES[info.dtype]) == array.dtype
        assert content[info.start : info.start + info.nbytes] == array.tobytes()


def mutations(content: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    """`content` with bytes flipped, digits and letters swapped for their like, or ends cut."""
    for _ in range(count):
        mutant = bytearray(content)
        kind = rng.randrange(5)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(mutant))
            if kind == 0:
                mutant[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                mutant[at] = rng.randrange(256)
            elif kind == 2:
                mutant[at] = rng.choice(b'0123456789-.eE"{}[],: \\utrnFUIB')
            elif kind == 3:
                digits = [i for i, byte in enumerate(mutant) if chr(byte).isdigit()]
                if digits:
                    mutant[rng.choice(digits)] = rng.choice(b"0123456789")
            else:
                del mutant[at : at + rng.randint(1, len(mutant))]
                break
        yield bytes(mutant)


def test_whatever_a_mutated_file_is_our_reader_accepts_no_more_than_the_library(
    tmp_path: Path,
) -> None:
    rng = random.Random(2026)
    arrays = {"a": np.arange(4, dtype="f4"), "b.c": np.zeros((2, 3), "u1"), "d": np.ones(1, "f2")}
    content = save(arrays, {"format": "np"})
    header = content[8 : content.rindex(b"}") + 1]
    accepted = refused = 0
    for mutant in [
        *mutations(content, 1500, rng),
        *(blob(text, bytes(24)) for text in mutations(header, 1500, rng)),  # the length right
    ]:
        path = write(tmp_path / "x.safetensors", mutant)
        try:
            ours = read_header(path)
        except LLMCLIError:
            refused += 1
            continue
        accepted += 1
        theirs = dict(safetensors.deserialize(mutant))  # raises where the library refuses
        assert ours.keys() == theirs.keys()
        for name, info in ours.items():
            assert (info.dtype, list(info.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])
            assert mutant[info.start : info.start + info.nbytes] == bytes(theirs[name]["data"])
    assert accepted > 50  # both sides of the sentence have been tried
    assert refused > 1000


def test_what_the_library_takes_and_we_refuse_is_this_list_and_no_more() -> None:
    stricter = {name for name, (content, _) in REFUSED.items() if library_accepts(content)}
    assert stricter == {
        "duplicate tensor", "entry is a list", "entry with an unknown key", "metadata is null",
    }  # fmt: skip


# A folder


def shards(folder: Path, weight_map: Any, **files: bytes) -> Path:
    index = {"metadata": {"total_size": 8}, "weight_map": weight_map}
    write(folder / "model.safetensors.index.json", json.dumps(index).encode())
    for name, content in files.items():
        write(folder / f"{name}.safetensors", content)
    return folder


A, B = blob({"a": entry()}, bytes(4)), blob({"b": entry("F16", [2])}, bytes(4))
MAP = {"a": "one.safetensors", "b": "two.safetensors"}


def test_a_folder_with_one_file_gives_its_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", GOOD)
    assert read_checkpoint(tmp_path) == read_header(path)


def test_a_folder_with_an_index_gives_the_tensors_of_every_shard(tmp_path: Path) -> None:
    tensors = read_checkpoint(shards(tmp_path, MAP, one=A, two=B))
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert tensors == read_header(one) | read_header(two)
    assert [info.file for info in tensors.values()] == [one, two]


def test_one_file_goes_before_an_index(tmp_path: Path) -> None:
    path = write(shards(tmp_path, MAP, one=A, two=B) / "model.safetensors", GOOD)
    assert {info.file for info in read_checkpoint(tmp_path).values()} == {path}


def test_each_shard_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight_map = {"a": "one.safetensors", "c": "two.safetensors", "b": "one.safetensors"}
    shards(tmp_path, weight_map, one=GOOD, two=A.replace(b'"a"', b'"c"'))
    opened: list[str] = []
    plain_open = Path.open

    def counting_open(path: Path, mode: str) -> Any:
        opened.append(path.name)
        return plain_open(path, mode)

    monkeypatch.setattr(Path, "open", counting_open)
    read_checkpoint(tmp_path)
    assert opened == ["model.safetensors.index.json", "one.safetensors", "two.safetensors"]


@pytest.mark.parametrize("nbytes", [0, 20, 5000, 200_001, 9_000_000])
def test_files_of_the_same_names_and_shapes_are_told_apart_by_any_part_of_their_data(
    nbytes: int, tmp_path: Path
) -> None:
    n, headers, sampled = 20, set(), set()
    for part in range(n):
        start, end = part * nbytes // n, (part + 1) * nbytes // n
        data = bytes(start) + b"\1" * (end - start) + bytes(nbytes - end)
        path = tmp_path / "model.safetensors"
        path.write_bytes(blob({"a": entry("U8", [nbytes], [0, nbytes])}, data))
        (hashes,) = file_hashes(tmp_path).values()
        assert hashes["nbytes"] == path.stat().st_size
        headers.add(hashes["header_sha256"])
        sampled.add(hashes["sampled_sha256"])
    assert len(headers) == 1
    assert len(sampled) == (n if nbytes else 1)


def test_a_file_is_told_apart_by_any_one_of_its_tensors(tmp_path: Path) -> None:
    """Where the others are large, too."""
    sizes, header, end = (300_000, 64, 2_000_000, 5, 300_000), {}, 0
    for name, size in zip("abcde", sizes, strict=True):
        header[name], end = entry("U8", [size], [end, end + size]), end + size
    sampled = set()
    for tensor in header.values():
        start, stop = tensor["data_offsets"]
        data = bytes(start) + b"\1" * (stop - start) + bytes(end - stop)
        (tmp_path / "model.safetensors").write_bytes(blob(header, data))
        (hashes,) = file_hashes(tmp_path).values()
        sampled.add(hashes["sampled_sha256"])
    assert len(sampled) == len(sizes)


def test_each_shard_has_hashes_of_its_own(tmp_path: Path) -> None:
    before = file_hashes(shards(tmp_path, MAP, one=A, two=B))
    after = file_hashes(shards(tmp_path, MAP, one=A, two=B[:-1] + b"\1"))
    assert [name for name in MAP.values() if before[name] != after[name]] == ["two.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="symlinks need a privilege on Windows")
def test_files_may_be_links_as_in_the_hugging_face_cache(tmp_path: Path) -> None:
    (tmp_path / "snapshot").mkdir()
    link = tmp_path / "snapshot" / "model.safetensors"
    link.symlink_to(write(tmp_path / "blob", GOOD))
    assert {info.file for info in read_checkpoint(link.parent).values()} == {link}


@pytest.mark.skipif(sys.platform == "win32", reason="symlinks need a privilege on Windows")
def test_a_link_to_nothing_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(NotFoundError, match=r"model\.safetensors cannot be read: No such file"):
        read_checkpoint(tmp_path)


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere cannot be read: No such file"):
        read_checkpoint(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="cannot be read: Not a directory"):
        read_checkpoint(write(tmp_path / "model.safetensors", GOOD))


@pytest.mark.parametrize("name", ["config.json", "adapter.safetensors", "training_args.bin"])
def test_a_folder_without_weights_is_not_found(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"")
    with pytest.raises(NotFoundError, match=r"has neither model\.safetensors nor .*download"):
        read_checkpoint(tmp_path)


PICKLES = (
    *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt"),
    *("tf_model.h5", "flax_model.msgpack", "model.onnx"),
)


@pytest.mark.parametrize("name", PICKLES)
def test_a_folder_with_pickle_or_foreign_weights_only_is_unsupported(
    tmp_path: Path, name: str
) -> None:
    write(tmp_path / name, b"")
    with pytest.raises(UnsupportedModelError, match="pickle is never loaded") as caught:
        read_checkpoint(tmp_path)
    assert f"'{name}'" in caught.value.fact
    assert "Convert the model to safetensors" in caught.value.remedy


def test_pickle_beside_safetensors_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_model.bin", b"")
    write(tmp_path / "model.safetensors", GOOD)
    assert read_checkpoint(tmp_path).keys() == {"a", "b"}


def test_a_shard_that_is_missing_is_not_found_and_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"names the shard 'two\.safetensors', which is not"):
        read_checkpoint(shards(tmp_path, MAP, one=A))


def test_a_shard_that_is_a_directory_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "two.safetensors").mkdir()
    with pytest.raises(NotFoundError, match=r"two\.safetensors is not a regular file"):
        read_checkpoint(shards(tmp_path, MAP, one=A))


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"two\.safetensors is damaged: the file is truncated"):
        read_checkpoint(shards(tmp_path, MAP, one=A, two=B[:-1]))


BAD_INDEX = {
    "empty": (b"", "JSON cannot be read"),
    "not UTF-8": (b"\xff", "JSON cannot be read"),
    "deep nesting": (b"[" * 200_000, "JSON cannot be read"),
    "not an object": (b"[]", "not an object"),
    "no weight_map": (b'{"metadata": {}}', "weight_map does not map"),
    "empty weight_map": (b'{"weight_map": {}}', "weight_map does not map"),
    "weight_map is a list": (b'{"weight_map": ["a"]}', "weight_map does not map"),
    "file is a number": (b'{"weight_map": {"a": 1}}', "weight_map does not map"),
    "file is a list": (b'{"weight_map": {"a": ["one.safetensors"]}}', "weight_map does not map"),
    "duplicate tensor": (b'{"weight_map": {"a": "x", "a": "x"}}', "duplicate key 'a'"),
    "two weight_maps": (b'{"weight_map": {}, "weight_map": {"a": "x"}}', "key 'weight_map'"),
}


@pytest.mark.parametrize(("content", "piece"), BAD_INDEX.values(), ids=BAD_INDEX.keys())
def test_a_damaged_index_is_an_integrity_error_that_says_what_is_wrong(
    tmp_path: Path, content: bytes, piece: str
) -> None:
    path = write(tmp_path / "model.safetensors.index.json", content)
    with pytest.raises(IntegrityError) as caught:
        read_checkpoint(tmp_path)
    assert caught.value.fact.startswith(f"{path} is damaged: ")
    assert piece in caught.value.fact


def test_an_index_past_64_mib_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors.index.json", b"{}")
    os.truncate(path, 64 * 2**20 + 1)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError, match="has 67108865 bytes"):
            read_checkpoint(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


OUTSIDE = (
    *("../one.safetensors", "/etc/passwd", "sub/one.safetensors", "./one.safetensors", "one/"),
    *("..\\one.safetensors", "C:one.safetensors", "\\\\host\\share\\x", "one\0", ".", "..", ""),
)


@pytest.mark.parametrize("shard", OUTSIDE)
def test_an_index_cannot_name_a_file_outside_its_folder(tmp_path: Path, shard: str) -> None:
    write(tmp_path / "one.safetensors", A)
    for folder in (tmp_path / "model", tmp_path / "model" / "sub"):
        folder.mkdir()
        write(folder / "one.safetensors", A)
    with pytest.raises(IntegrityError, match="is not the plain name of a file beside it"):
        read_checkpoint(shards(tmp_path / "model", {"a": shard}))


CONTRADICTIONS = {
    "tensor that no shard has": (MAP | {"c": "two.safetensors"}, "'c' is not in 'two.safetensors'"),
    "tensor in another shard": (
        {"a": "one.safetensors", "b": "one.safetensors"},
        "'b' is not in 'one.safetensors'",
    ),
    "tensor that the index leaves out": (
        {"a": "one.safetensors", "d": "three.safetensors"},
        "'e' is in 'three.safetensors'",
    ),
    "tensor in two shards": (
        MAP | {"d": "three.safetensors", "e": "four.safetensors"},
        "'e' is in 'three.safetensors'",
    ),
}


@pytest.mark.parametrize(
    ("weight_map", "piece"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys()
)
def test_an_index_that_its_shards_contradict_is_an_integrity_error(
    tmp_path: Path, weight_map: dict[str, str], piece: str
) -> None:
    three = blob({"d": entry(), "e": entry(offsets=[4, 8])}, bytes(8))
    four = blob({"e": entry()}, bytes(4))
    with pytest.raises(IntegrityError) as caught:
        read_checkpoint(shards(tmp_path, weight_map, one=A, two=B, three=three, four=four))
    assert f"tensor {piece}, and it says otherwise" in caught.value.fact


# The module


def test_the_module_imports_the_standard_library_and_our_errors_only() -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(Path(llmcli.checkpoint.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign == {"llmcli.errors"}
