"""The decode step on an NVIDIA GPU: one kernel, `decode.cu`, for all layers.

A step of one row takes as long as memory needs to give all weights once. The hundreds of kernels
that `GPT.forward` calls are each done in two microseconds, and memory rests between them: here the
next weights are asked for while the blocks still wait for each other. The compiler (NVRTC) and the
driver's interface come with the CUDA builds of torch; where they do not, `GPT` itself is called.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from llmcli.config import ModelConfig
from llmcli.gpt.cache import KVCache
from llmcli.gpt.model import GPT

WARPS = 16  # of a block; the last multiplies nothing
CHUNK, SIZE, SPLITS = 256, 4, 8  # as in decode.cu
HEADS = (8, 16, 32, 64, 128, 256)
WIDEST = 8192  # what leaves room for a ring in the shared memory of a small GPU
MOST_ROWS = 32 * (WARPS - 1)  # of a matrix that a block can have: a lane of a warp writes each

STORED = {
    torch.float32: """
        typedef float Stored;
        __device__ float number(Stored v) { return v; }
        __device__ Stored rounded(float v) { return v; }""",
    torch.bfloat16: """
        typedef unsigned short Stored;
        __device__ float number(Stored v) { return __uint_as_float((unsigned)v << 16); }
        __device__ Stored rounded(float v) {
            Stored r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }""",
    torch.float16: """
        typedef unsigned short Stored;
        __device__ float number(Stored v) {
            float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v)); return f; }
        __device__ Stored rounded(float v) {
            Stored r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }""",
}
ACTIVATIONS = {  # as in gpt.model
    "gelu_tanh": "0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)))",
    "gelu": "0.5f * x * (1 + erff(0.7071067812f * x))",
    "relu": "x < 0 ? 0 : x",
    "silu": "x / (1 + __expf(-x))",
}


def missing_kernel(config: ModelConfig) -> str | None:
    """Why `DecodeKernel` is not for such a model on this machine's GPU; None: it is."""
    slower = "a step takes the usual, slower way."
    if torch.version.hip or torch.cuda.get_device_capability() < (8, 0):
        return f"The decode kernel is for NVIDIA GPUs from Ampere on: {slower}"
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return f"cuda-bindings is not installed (pip install cuda-bindings): {slower}"
    if config.head_dim not in HEADS or config.n_embd % 16 or config.mlp_dim % 16:
        return f"The decode kernel is not for heads of {config.head_dim}: {slower}"
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    n_blocks = gpu.multi_processor_count
    if config.mlp_dim > min(WIDEST, n_blocks * MOST_ROWS) or 3 * config.n_embd > WIDEST:
        return f"The decode kernel is not for {config.mlp_dim} neurons in a layer: {slower}"
    return None


class DecodeKernel:
    """`model(ids, cache)` for one more token of one row: ids (1, 1) -> logits (1, 1, V), float32.

    The logits are the same tensor at each call. With several rows the model itself is called. Its
    weights must not be replaced afterwards. Raises RuntimeError or ImportError where the kernel
    cannot be made, ValueError for matrices that do not lie row after row.
    """

    def __init__(self, model: GPT) -> None:
        config, device = model.config, model.device
        gpu: Any = torch.cuda.get_device_properties(device)
        self.model = ref(model)
        self.n_blocks = gpu.multi_processor_count
        slots, self.shared_nbytes = _shared(model, gpu.shared_memory_per_block_optin)
        source = _source(model, slots)
        self.function = _compiled(source, f"sm_{gpu.major}{gpu.minor}", self.shared_nbytes)
        linears = list(_linears(model))
        if not all(of[0].is_contiguous() for of in linears if of[0] is not None):
            raise ValueError("a matrix is transposed")
        pointers = [[0 if w is None else w.data_ptr() for w in of] for of in linears]
        self.linears = torch.tensor(pointers, device=device)
        scales = [config.attn_scale(layer) for layer in range(config.n_layer)]
        self.scales = torch.tensor(scales, device=device)
        C, M, H, V = config.n_embd, config.mlp_dim, config.n_head, config.vocab_size
        self.space = torch.empty(2 * C + M + SPLITS * (C + H), device=device)
        self.logits = torch.empty(1, 1, V, device=device)
        self.told = torch.empty(1, 1, V, pin_memory=True)
        self.arrived = torch.zeros(1, dtype=torch.int32, device=device)
        self.waits = (5 * config.n_layer + 1) * self.n_blocks  # of all blocks, in a launch
        self.waited = 0

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        from cuda.bindings import driver

        model = self.model()
        assert model is not None  # it was in the hands of who called
        if len(ids) > 1 or cache.pad is not None or not cache.keys.is_contiguous():
            return model(ids, cache)
        position = cache.length
        cache.extend(1)
        stream = torch.cuda.current_stream(model.device)
        tensors = [
            self.linears, self.scales, model.token_embedding.weight,
            model.position_embedding.weight, cache.keys, cache.values, self.logits, self.space,
            self.arrived, ids,
        ]  # fmt: skip
        values = (*(t.data_ptr() for t in tensors), position, cache.capacity, self.waited)
        types = (*[ctypes.c_void_p] * len(tensors), ctypes.c_int, ctypes.c_int, ctypes.c_uint)
        self.waited = (self.waited + self.waits) % (1 << 32)
        _checked(
            driver.cuLaunchCooperativeKernel(
                self.function, self.n_blocks, 1, 1, 32 * WARPS, 1, 1, self.shared_nbytes,
                stream.cuda_stream, (values, types),
            )
        )  # fmt: skip
        self.told.copy_(self.logits, non_blocking=True)
        stream.synchronize()
        return self.told


def _linears(model: GPT) -> Iterator[list[Tensor | None]]:
    """What `Linear` of decode.cu has, of all matrices in the order in which a step needs them."""
    blocks: Any = model.blocks
    for block in blocks:
        attn, mlp = block.attn, block.mlp
        yield [attn.qkv.weight, attn.qkv.bias, block.norm_1.weight, block.norm_1.bias]
        yield [attn.out.weight, attn.out.bias, None, None]
        yield [mlp.up.weight, mlp.up.bias, block.norm_2.weight, block.norm_2.bias]
        yield [mlp.down.weight, mlp.down.bias, None, None]
    yield [model.head.weight, None, model.norm_f.weight, model.norm_f.bias]


def _shared(model: GPT, room: int) -> tuple[int, int]:
    """Slots of a warp's ring, and the bytes of shared memory of a block, `room` at most."""
    config = model.config
    C, M, D = config.n_embd, config.mlp_dim, config.head_dim
    rest = 4 * (max(C, M) + WARPS + WARPS * (D + 2)) + 32 * (4 * config.n_layer + 1) + 64
    slot = (WARPS - 1) * SIZE * CHUNK * model.dtype.itemsize
    slots = (room - rest) // slot
    return slots, rest + slots * slot


def _source(model: GPT, slots: int) -> str:
    config = model.config
    sizes = {
        "N_LAYER": config.n_layer, "N_HEAD": config.n_head, "HEAD_DIM": config.head_dim,
        "N_EMBD": config.n_embd, "MLP_DIM": config.mlp_dim, "VOCAB_SIZE": config.vocab_size,
        "NORM_EPS": f"{config.norm_eps}f", "WARPS": WARPS, "SLOTS": slots,
    }  # fmt: skip
    activation = ACTIVATIONS[config.activation]
    return "\n".join([
        *(f"#define {name} {value}" for name, value in sizes.items()),
        STORED[model.dtype],
        f"__device__ float activation(float x) {{ return {activation}; }}",
        (files("llmcli.gpt") / "decode.cu").read_text(),
    ])  # fmt: skip


def _compiled(source: str, architecture: str, shared_nbytes: int) -> Any:
    """The kernel as a function of the driver, in the context that torch has made."""
    from cuda.bindings import driver, nvrtc

    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"decode.cu", 0, [], []))
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17", b"-default-device"]
    _checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
    code = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
    _checked(nvrtc.nvrtcGetCUBIN(program, code))
    module = _checked(driver.cuModuleLoadData(code))
    function = _checked(driver.cuModuleGetFunction(module, b"decode"))
    most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _checked(driver.cuFuncSetAttribute(function, most, shared_nbytes))
    return function


def _checked(answer: tuple[Any, ...]) -> Any:
    """What a call returned beside its error, of which there must be none."""
    error, *values = answer
    if error.value:
        raise RuntimeError(f"{error.name}")
    return values[0] if values else None
