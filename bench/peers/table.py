"""Other projects' kernels on the same inputs, in the same process, in turn with ours.

A peer that is not installed, or does not run on this device, leaves a line with the reason.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.kernels.check import HALF_LIMIT, relative_error
from bench.kernels.contest import Bench, Contestant
from bench.kernels.random_weights import random_weight
from bench.kernels.suite import Layer
from bench.measurement import Scalar
from kernels.layouts import unpack_codes
from perfmodel.errors import PerfmodelError

SUITE = "peers"
GROUP = 128
BF16_LIMIT = 1e-2  # a kernel that takes bfloat16 activations


class PeerError(PerfmodelError):
    """A peer is not here, does not run here, or is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A peer's weights of one shape, and the same weights dequantized."""

    weights: tuple[Tensor, ...]
    run: Callable[[Tensor, tuple[Tensor, ...]], Tensor]  # x (1, K), weights -> (1, N)
    values: Tensor  # (N, K) that the weights stand for
    dtype: torch.dtype = torch.float16  # of the activations

    @property
    def weight_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One kernel of another project; `load` is None where nobody has written how to call it."""

    name: str
    package: str
    format: str  # perfmodel weight format that its weights are worth
    kinds: tuple[str, ...]  # devices that it runs on
    load: Callable[[tuple[int, int], str], Loaded] | None = None


def _grouped_int4(shape: tuple[int, int], device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes (N, K), scales and zeros (N, groups) and values of a grouped 4-bit GPTQ weight."""
    generator = torch.Generator(device).manual_seed(0)
    (weight,) = random_weight(f"gptq-w4-g{GROUP}", shape, generator)
    codes, (scale, zero) = unpack_codes(weight.codes), weight.scale_zero.unbind(2)
    grouped = codes.reshape(shape[0], -1, GROUP).float()
    values = scale.float()[..., None] * (grouped - zero.float()[..., None])
    return codes, scale, zero, values.reshape(shape)


def _torch_int4(shape: tuple[int, int], device: str) -> Loaded:
    """torch's 4-bit product: w = (code - 8) scale + offset, so the offset is scale (8 - zero)."""
    codes, scale, zero, values = _grouped_int4(shape, device)
    dtype = torch.float16 if device == "cpu" else torch.bfloat16
    scales = torch.stack((scale, scale * (8 - zero)), dim=2).transpose(0, 1).contiguous().to(dtype)
    ops = torch.ops.aten
    if device == "cpu":
        packed = ops._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        product = ops._weight_int4pack_mm_for_cpu
    else:
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
        packed, product = ops._convert_weight_to_int4pack(pairs, 8), ops._weight_int4pack_mm
    return Loaded(
        weights=(packed, scales), run=lambda x, w: product(x, w[0], GROUP, w[1]), values=values,
        dtype=dtype,
    )  # fmt: skip


def _torch_int8(shape: tuple[int, int], device: str) -> Loaded:
    """torch's built-in 8-bit product with one scale per row."""
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randint(-127, 128, shape, generator=generator, device=device).to(torch.int8)
    scale = torch.rand(shape[0], generator=generator, device=device).half() / 128
    return Loaded(
        weights=(weight, scale),
        run=lambda x, w: torch.ops.aten._weight_int8pack_mm(x, *w),
        values=weight.float() * scale.float()[:, None],
    )


def _bitsandbytes_nf4(shape: tuple[int, int], device: str) -> Loaded:
    """bitsandbytes' 4-bit lookup table (NF4), blocks of 64."""
    from bitsandbytes import functional

    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(shape, generator=generator, device=device).half() * shape[1] ** -0.5
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    values = functional.dequantize_4bit(packed, state).float()

    def run(x: Tensor, w: tuple[Tensor, ...]) -> Tensor:
        import bitsandbytes

        state.absmax = w[1]
        return bitsandbytes.matmul_4bit(x, w[0].t(), quant_state=state)

    return Loaded(weights=(packed, state.absmax), run=run, values=values)


def _gemlite_int4(shape: tuple[int, int], device: str) -> Loaded:
    """gemlite's Triton kernels on grouped 4-bit weights."""
    import gemlite

    codes, scale, zero, values = _grouped_int4(shape, device)
    layer = gemlite.GemLiteLinear(
        4, group_size=GROUP, in_features=shape[1], out_features=shape[0],
        input_dtype=gemlite.DType.FP16, output_dtype=gemlite.DType.FP16,
    )  # fmt: skip
    layer.pack(codes.to(torch.uint8), scale, zero, None)
    return Loaded(
        weights=tuple(t for t in layer.get_tensor_args() if t.is_cuda),
        run=lambda x, _w: layer(x),
        values=values,
    )


PEERS = (
    Peer(name="torch-int4", package="torch", format=f"gptq-w4-g{GROUP}", kinds=("cuda", "cpu"),
         load=_torch_int4),
    Peer(name="torch-int8", package="torch", format="rtn-w8", kinds=("cpu",), load=_torch_int8),
    Peer(name="bitsandbytes-nf4", package="bitsandbytes", format="w4.5", kinds=("cuda", "cpu"),
         load=_bitsandbytes_nf4),
    Peer(name="gemlite-int4", package="gemlite", format=f"gptq-w4-g{GROUP}", kinds=("cuda",),
         load=_gemlite_int4),
    Peer(name="torchao-int4", package="torchao", format=f"gptq-w4-g{GROUP}", kinds=("cuda",)),
    Peer(name="humming", package="humming", format=f"gptq-w4-g{GROUP}", kinds=("cuda",)),
    Peer(name="gptqmodel-marlin", package="gptqmodel", format=f"gptq-w4-g{GROUP}",
         kinds=("cuda",)),
)  # fmt: skip


def problem(peer: Peer, kind: str) -> str | None:
    """Why a peer cannot run on this kind of device; None: it can be tried."""
    if kind not in peer.kinds:
        return f"does not run on a {'GPU' if kind == 'cuda' else 'CPU'} here"
    if importlib.util.find_spec(peer.package) is None:
        return f"{peer.package} is not installed"
    return None if peer.load else f"{peer.package} is there, but nobody has written how to call it"


def contestants(bench: Bench, layer: Layer, peers: Sequence[Peer]) -> list[Contestant]:
    """The peers that run here and are right, on this layer; a line with the reason for others."""
    found = []
    for peer in peers:
        params = {
            "model": layer.model, "tensor": layer.tensor, "rows": layer.rows,
            "columns": layer.columns, "batch": 1,
        }  # fmt: skip
        if bench.results.is_done(bench.key(SUITE, peer.name, params)):
            continue
        try:
            found.append(_contestant(bench, peer, params))
        except (PeerError, RuntimeError, ImportError, AttributeError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            line = {"kind": "skipped", "name": peer.name, "layer": layer.name, "reason": reason}
            bench.results.add_line(line)
    return found


def _contestant(bench: Bench, peer: Peer, params: dict[str, int | str]) -> Contestant:
    """Raises: PeerError; whatever the peer raises."""
    kind, shape = bench.environment.kind, (int(params["rows"]), int(params["columns"]))
    why = problem(peer, kind)
    if why:
        raise PeerError(why)
    loaded = peer.load(shape, kind)
    x = torch.randn((1, shape[1]), device=kind).half().to(loaded.dtype)
    expected = x.double() @ loaded.values.double().T
    error = relative_error(loaded.run(x, loaded.weights), expected)
    limit = HALF_LIMIT if loaded.dtype == torch.float16 else BF16_LIMIT
    if not error <= limit:
        raise PeerError(f"is wrong: error {error:.1e}, at most {limit:.0e}")
    copies = bench.cold_copies(loaded.weight_bytes)
    others = [tuple(w.clone() for w in loaded.weights) for _ in range(copies - 1)]
    facts: dict[str, Scalar] = {
        "format": peer.format, "error": error, "error_limit": limit, "copies": copies,
        "weight_bytes": loaded.weight_bytes,
    }  # fmt: skip
    return Contestant(
        suite=SUITE,
        name=peer.name,
        params=params,
        call=partial(_call, loaded.run, x, [loaded.weights, *others]),
        copies=copies,
        bytes_moved=loaded.weight_bytes + x.nbytes + 2 * shape[0],
        flops=2 * shape[0] * shape[1],
        facts=facts,
    )


def _call(
    run: Callable[..., Tensor], x: Tensor, copies: list[tuple[Tensor, ...]], copy: int
) -> Tensor:
    return run(x, copies[copy])
