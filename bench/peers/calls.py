"""How each peer packs weights and is called, as its own source says.

Each loader gives the tensors that a call reads, so that the timing can rotate over copies of them:
a call that kept its first copy would read it from the cache.
"""

import torch
from torch import Tensor

from bench.kernels.random_weights import random_weight
from bench.peers.loaded import GROUP, Grouped, Loaded, bit_stream, grouped_int4
from kernels.layouts import dequantized, table_values, unpack_codes
from kernels.layouts.sparse import dequantize_csr, wide_columns

TINYGEMM_TILE = 1024  # columns that torchao pads to


def torch_int4(shape: tuple[int, int], device: str) -> Loaded:
    """torch's 4-bit product."""
    weight, ops = grouped_int4(shape, device), torch.ops.aten
    if device == "cpu":
        packed = ops._convert_weight_to_int4pack_for_cpu(weight.codes.int(), 1)
        scales, product = _tinygemm_scales(weight, torch.float16), ops._weight_int4pack_mm_for_cpu
    else:
        packed = _tinygemm_codes(weight.codes)
        scales, product = _tinygemm_scales(weight, torch.bfloat16), ops._weight_int4pack_mm
    return Loaded(
        weights=(packed, scales), run=lambda x, w: product(x, w[0], GROUP, w[1]),
        values=weight.values, dtype=scales.dtype,
    )  # fmt: skip


def torchao_int4(shape: tuple[int, int], device: str) -> Loaded:
    """torchao's tensor around the same operator: it pads the columns, and slices what comes."""
    from torchao.quantization.quantize_.workflows import Int4TilePackedTo4dTensor

    weight, spare = grouped_int4(shape, device), -shape[1] % TINYGEMM_TILE
    codes = torch.nn.functional.pad(weight.codes, (0, spare))
    scales = _tinygemm_scales(weight, torch.bfloat16)
    scales = torch.nn.functional.pad(scales, (0, 0, 0, 0, 0, spare // GROUP))

    def run(x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
        packed = Int4TilePackedTo4dTensor(w[0], w[1], [1, GROUP], torch.Size(shape))
        return torch.nn.functional.linear(x, packed)

    return Loaded(
        weights=(_tinygemm_codes(codes), scales), run=run, values=weight.values,
        dtype=scales.dtype,
    )  # fmt: skip


def _tinygemm_scales(weight: Grouped, dtype: torch.dtype) -> Tensor:
    """(groups, N, 2): w = (code - 8) scale + offset, so the offset is scale (8 - zero)."""
    pairs = torch.stack((weight.scale, weight.scale * (8 - weight.zero)), dim=2)
    return pairs.transpose(0, 1).contiguous().to(dtype)


def _tinygemm_codes(codes: Tensor) -> Tensor:
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).contiguous()
    return torch.ops.aten._convert_weight_to_int4pack(pairs, 8)


def torch_int8(shape: tuple[int, int], device: str) -> Loaded:
    """torch's built-in 8-bit product with one scale per row."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randint(-127, 128, shape, generator=generator, device=device).to(torch.int8)
    scale = torch.rand(shape[0], generator=generator, device=device).half() / 128
    return Loaded(
        weights=(weight, scale),
        run=lambda x, w: torch.ops.aten._weight_int8pack_mm(x, *w),
        values=weight.float() * scale.float()[:, None],
    )


def bitsandbytes_nf4(shape: tuple[int, int], device: str) -> Loaded:
    """bitsandbytes' 4-bit lookup table (NF4), blocks of 64."""
    import bitsandbytes
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(_normal(shape, device), blocksize=64, quant_type="nf4")
    values = functional.dequantize_4bit(packed, state).float()

    def run(x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
        state.absmax = w[1]
        return bitsandbytes.matmul_4bit(x, w[0].t(), quant_state=state)

    return Loaded(weights=(packed, state.absmax), run=run, values=values)


def gemlite_int4(shape: tuple[int, int], device: str) -> Loaded:
    """gemlite's Triton kernels on grouped 4-bit weights."""
    import gemlite

    weight = grouped_int4(shape, device)
    layer = gemlite.GemLiteLinear(
        4, group_size=GROUP, in_features=shape[1], out_features=shape[0],
        input_dtype=gemlite.DType.FP16, output_dtype=gemlite.DType.FP16,
    )  # fmt: skip
    layer.pack(weight.codes.to(torch.uint8), weight.scale.contiguous(), weight.zero.contiguous())
    meta = layer.get_meta_args()
    return Loaded(
        weights=tuple(layer.get_tensor_args()),
        run=lambda x, w: gemlite.forward_functional(x, None, list(w), meta),
        values=weight.values,
    )


def humming(bits: int, shape: tuple[int, int], device: str) -> Loaded:
    """humming's kernel, compiled at its first call; quantized by its own rule."""
    from humming.forward import humming_forward
    from humming.layer import HummingLayer

    settings = {"dtype": f"uint{bits}", "group_size": GROUP, "has_zero_point": True}
    layer = HummingLayer(
        shape_n=shape[0], shape_k=shape[1], weight_config=settings, torch_dtype=torch.float16
    ).to(device)
    layer.load_from_unquantized(_normal(shape, device))
    values = layer.weight_schema.dequant_tensors(layer.state_dict()).float()
    layer.transform()
    config, locks = layer.humming_config, layer.locks
    return Loaded(
        weights=(layer.weight.data, layer.weight_scale.data, layer.zero_point.data),
        run=lambda x, w: humming_forward(
            config, inputs=x, weight=w[0], weight_scale=w[1], zero_point=w[2], locks=locks
        ),
        values=values,
    )


def marlin_int4(shape: tuple[int, int], device: str) -> Loaded:
    """Marlin as its authors publish it: symmetric, one scale per group."""
    import marlin

    rows, columns = shape
    weight = grouped_int4(shape, device, symmetric=True)
    linear = torch.nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight.values.half(), requires_grad=False)
    layer = marlin.Layer(columns, rows, groupsize=GROUP).to(device)
    layer.pack(linear, weight.scale)
    out = torch.empty((1, rows), dtype=torch.float16, device=device)

    def run(x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
        marlin.mul(x, w[0], out, w[1], layer.workspace)
        return out

    return Loaded(weights=(layer.B, layer.s), run=run, values=weight.values)


def squeezellm(name: str, shape: tuple[int, int], device: str) -> Loaded:
    """SqueezeLLM's own kernels; casts and the zeroed result are its layer's, and counted.

    name: a weight format, dense or hybrid. Tables, sparse values and dense rows are FP32.
    """
    import quant_cuda

    (weight, *sparse) = random_weight(name, shape, torch.Generator(device).manual_seed(0))
    bits, values = weight.codes.bits, dequantized(weight).float()
    table = table_values(weight.codebook).float().contiguous()  # (N, 2^bits)
    packed = (bit_stream(unpack_codes(weight.codes), bits), table)
    if not sparse:
        dense = getattr(quant_cuda, f"vecquant{bits}matmul_nuq_perchannel")
        return Loaded(
            weights=packed,
            run=lambda x, w: _squeezellm_layer(x, shape[0], lambda v, y: dense(v, w[0], y, w[1])),
            values=values,
        )
    (csr,) = sparse
    parts = (
        csr.row_pointers.int(), wide_columns(csr).int(), csr.values.float(),
        csr.dense_rows.values.float().T.contiguous(), csr.dense_rows.rows.int(),
    )  # fmt: skip
    hybrid = getattr(quant_cuda, f"vecquant{bits}matmul_spmv_hybrid_nuq_perchannel")

    def run(x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
        return _squeezellm_layer(
            x, shape[0], lambda v, y: hybrid(*w[2:5], v, *w[5:], y, shape[0], w[0], w[1])
        )

    return Loaded(weights=(*packed, *parts), run=run, values=values + dequantize_csr(csr).float())


def _squeezellm_layer(x: Tensor, rows: int, launch) -> Tensor:
    """What its QuantLinearLUT does around a launch."""
    y = torch.zeros(rows, device=x.device, dtype=torch.float32)
    launch(x.float().reshape(-1), y)
    return y.to(x.dtype).reshape(1, rows)


def _normal(shape: tuple[int, int], device: str) -> Tensor:
    """FP16 weights of the size that trained layers have."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(shape, generator=generator, device=device)
    return (weight * shape[1] ** -0.5).half()
