"""Small records whose numbers a reader can follow by hand."""

from msgspec.structs import replace

from perfmodel.format_names import parse_format
from perfmodel.formats import BitPolicy
from perfmodel.hardware import HardwareSpec, load_hardware
from perfmodel.prediction import Prediction, predict
from perfmodel.shape import ModelShape
from perfmodel.stack_files import load_stack
from perfmodel.workload import Workload


def toy_hardware(**changes: object) -> HardwareSpec:
    """1 TB/s, 100 TFLOP/s on matrix units, 10 TFLOP/s on vector units: ridge 100 FLOP/B."""
    spec = replace(
        load_hardware("a6000"),
        key="toy",
        dram_bytes=10**9,
        dram_bytes_per_s=1e12,
        fp16_matmul_flop_per_s=1e14,
        fp32_flop_per_s=1e13,
        link_bytes_per_s=2e11,
        host_clock_hz=None,
    )
    return replace(spec, **changes)


def toy_model(**changes: object) -> ModelShape:
    """Two layers, hidden 64, four heads of 16, MLP 128, vocabulary 256."""
    shape = ModelShape(
        name="toy",
        layers=2,
        hidden=64,
        intermediate=128,
        heads=4,
        kv_heads=4,
        head_dim=16,
        vocab=256,
        max_positions=1024,
        gated_mlp=True,
        activation="silu",
        positions="rotary",
        layer_norm=False,
        norm_bias=False,
        parallel_mlp=False,
        tied_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        sliding_window=None,
        source="tests",
    )
    return replace(shape, **changes)


def policy(linear: str = "fp16", lm_head: str = "fp16", embedding: str = "fp16") -> BitPolicy:
    return BitPolicy(
        linear=parse_format(linear),
        lm_head=parse_format(lm_head),
        embedding=parse_format(embedding),
    )


def toy_workload(**changes: object) -> Workload:
    return replace(Workload(model=toy_model(), policy=policy()), **changes)


def ideal(workload: Workload, hw: HardwareSpec | None = None) -> Prediction:
    """Prediction with the ideal stack, on the toy device unless told otherwise."""
    return predict(workload, hw or toy_hardware(), load_stack("ideal"))
