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
ACTIVATIONS = {  # as in gpt.activation
    "gelu_tanh": "0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)))",
    "gelu": "0.5f * x * (1 + erff(0.7071067812f * x))",
    "relu": "x < 0 ? 0 : x",
    "silu": "x / (1 + __expf(-x))",
}


def missing_kernel(
    config: ModelConfig, storage: str, device: torch.device | str = "cuda"
) -> str | None:
    """Why `DecodeKernel` is not for such a model, stored so, on this GPU; None: it is."""
    gpu = torch.cuda.get_device_properties(device)
    C, M, dtype = config.n_embd, config.mlp_dim, getattr(torch, storage)
    tallest = max(3 * C, M)  # of the matrices, but for the head
    if torch.version.hip or gpu.major < 8:
        why = "which is for NVIDIA's from Ampere on"
    elif find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        why = "since the package cuda-bindings is missing"
    elif config.head_dim not in HEADS or C % 16 or M % 16:
        why = f"which is not for heads of {config.head_dim}, {C} wide, with {M} neurons"
    elif tallest > gpu.multi_processor_count * MOST_ROWS or _shared(config, dtype, gpu)[0] < 2:
        why = f"which has no room for layers {C} and {M} wide in {storage}"
    else:
        return None
    return f"No decode kernel on this GPU, {why}: a step takes the usual, slower way."


class DecodeKernel:
    """`model(ids, cache)` for one more token of one row: ids (1, 1) -> logits (1, 1, V), float32.

    The logits are the same tensor at each call. With several rows the model itself is called. Its
    weights must not be replaced afterwards. Raises RuntimeError or ImportError where the kernel
    cannot be made.
    """

    def __init__(self, model: GPT) -> None:
        config, device = model.config, model.device
        gpu = torch.cuda.get_device_properties(device)
        self.model = ref(model)
        self.n_blocks = gpu.multi_processor_count
        slots, self.shared_nbytes = _shared(config, model.dtype, gpu)
        with torch.cuda.device(device):
            architecture = f"sm_{gpu.major}{gpu.minor}"
            self.function = _compiled(_source(model, slots), architecture, self.shared_nbytes)
        linears = list(_linears(model))
        if not all(of[0].is_contiguous() for of in linears if of[0] is not None):
            raise RuntimeError("a matrix does not lie row after row")
        pointers = [[0 if w is None else w.data_ptr() for w in of] for of in linears]
        self.linears = torch.tensor(pointers, device=device)
        scales = [config.attn_scale(layer) for layer in range(config.n_layer)]
        self.scales = torch.tensor(scales, device=device)
        C, M, H, V = config.n_embd, config.mlp_dim, config.n_head, config.vocab_size
        self.space = torch.empty(2 * C + M + SPLITS * (C + H), device=device)
        self.logits = torch.empty(1, 1, V, device=device)
        self.told = torch.empty(1, 1, V, pin_memory=True)
        self.arrived = torch.zeros(1, dtype=torch.int32, device=device)

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        from cuda.bindings import driver

        model = self.model()
        assert model is not None  # it was in the hands of who called
        if len(ids) > 1 or cache.pad is not None or not cache.keys.is_contiguous():
            return model(ids, cache)
        position = cache.length
        cache.extend(1)
        tensors = [
            self.linears, self.scales, model.token_embedding.weight,
            model.position_embedding.weight, cache.keys, cache.values, self.logits, self.space,
            self.arrived.zero_(), ids,
        ]  # fmt: skip
        values = (*(tensor.data_ptr() for tensor in tensors), position, cache.capacity)
        types = (*[ctypes.c_void_p] * len(tensors), ctypes.c_int, ctypes.c_int)
        with torch.cuda.device(model.device):
            stream = torch.cuda.current_stream()
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
    for block in map(model.block, range(model.config.n_layer)):
        attn, mlp = block.attn, block.mlp
        yield [attn.qkv.weight, attn.qkv.bias, block.norm_1.weight, block.norm_1.bias]
        yield [attn.out.weight, attn.out.bias, None, None]
        yield [mlp.up.weight, mlp.up.bias, block.norm_2.weight, block.norm_2.bias]
        yield [mlp.down.weight, mlp.down.bias, None, None]
    yield [model.head.weight, None, model.norm_f.weight, model.norm_f.bias]


def _shared(config: ModelConfig, dtype: torch.dtype, gpu: Any) -> tuple[int, int]:
    """Slots of a warp's ring, and the bytes of shared memory of a block that has so many."""
    C, M, D = config.n_embd, config.mlp_dim, config.head_dim
    rest = 4 * (max(C, M) + WARPS + WARPS * (D + 2)) + 32 * (4 * config.n_layer + 1) + 64
    slot = (WARPS - 1) * SIZE * CHUNK * dtype.itemsize
    # Versions of torch that do not say it get what each GPU from Ampere on has.
    slots = (getattr(gpu, "shared_memory_per_block_optin", 99 << 10) - rest) // slot
    return slots, rest + slots * slot


def _source(model: GPT, slots: int) -> str:
    config = model.config
    sizes = {
        "N_LAYER": config.n_layer, "N_HEAD": config.n_head, "HEAD_DIM": config.head_dim,
        "N_EMBD": config.n_embd, "MLP_DIM": config.mlp_dim, "VOCAB_SIZE": config.vocab_size,
        "NORM_EPS": f"{float(config.norm_eps)}f", "WARPS": WARPS, "SLOTS": slots,
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
    _checked(nvrtc.nvrtcDestroyProgram(program))
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
