"""Everything of a forward pass that does not depend on what the KV cache holds."""

from msgspec.structs import replace

from perfmodel.formats import BitPolicy
from perfmodel.ops import Matrix, Op, Traffic, gemm
from perfmodel.shape import Linear
from perfmodel.units import ceil_div
from perfmodel.workload import ELEMENT_BYTES, Pass

# FLOPs per element of the output; docs/model.md says what is counted.
RMS_NORM_FLOPS = 4  # square, add, scale, weight
LAYER_NORM_FLOPS = 7  # mean 1, variance 3, normalize 2, weight and bias counted with them
ROPE_FLOPS = 3  # two products and a sum per element
ACTIVATION_FLOPS = {
    "silu": 5,  # negate and exponential, add, divide, product with the gate, product with up
    "relu": 1,
    "gelu": 8,  # as the survey counts it (arXiv 2302.14017, section 2)
}
RESIDUAL_FLOPS = 1

ROW_SPLIT = ("o_proj", "down_proj")  # split along K; the others along N
RESIDUALS_PER_BLOCK = 2


def block_ops(step: Pass, policy: BitPolicy) -> tuple[Op, ...]:
    """Projections and elementwise ops of one block."""
    linears = tuple(_projection(step, policy, linear) for linear in step.model.linears())
    if step.accounting == "fused":
        return (*linears, _norm(step, step.rows) * step.model.norms_per_block)
    norms = _norm(step, step.rows) * step.model.norms_per_block
    unfused = [norms, _residual(step) * RESIDUALS_PER_BLOCK]
    if step.accounting == "eager":
        unfused.append(_activation(step))
        if step.model.rope:
            unfused.append(_rope(step))
    return (*linears, *unfused)


def outer_ops(step: Pass, policy: BitPolicy) -> tuple[Op, ...]:
    """What surrounds the blocks: embedding, final norm, lm_head; nothing in the paper's rule."""
    if step.accounting == "paper":
        return ()
    return (_embedding(step, policy), _norm(step, step.batch), _lm_head(step, policy))


def collective_ops(step: Pass) -> tuple[Op, ...]:
    """All-reduces of one whole pass over tensor-parallel devices, and the gather of the logits.

    A ring sends 2 (p-1)/p of the data through each device's link for an all-reduce and (p-1)/p
    for an all-gather. Source: Thakur, Rabenseifner, Gropp, "Optimization of Collective
    Communication Operations in MPICH", 2005, section 4.
    """
    devices = step.tensor_parallel
    if devices == 1:
        return ()
    hidden_bytes = step.rows * step.model.hidden * ELEMENT_BYTES
    outer = step.accounting != "paper"
    # Attention and MLP side by side are added before they are reduced.
    per_block = 1 if step.model.parallel_mlp else 2
    reduces = per_block * step.model.layers + (1 if outer else 0)
    logits_bytes = step.batch * step.model.vocab * ELEMENT_BYTES
    gather = (_collective("all_gather", logits_bytes, rounds=1, devices=devices),) if outer else ()
    return (_collective("all_reduce", hidden_bytes, rounds=2, devices=devices) * reduces, *gather)


def _collective(name: str, data_bytes: int, *, rounds: int, devices: int) -> Op:
    return Op(
        name=name,
        kind="collective",
        flops=0,
        traffic=Traffic(read_bytes=data_bytes, write_bytes=data_bytes),
        send_bytes=ceil_div(rounds * (devices - 1) * data_bytes, devices),
    )


def _projection(step: Pass, policy: BitPolicy, linear: Linear) -> Op:
    """One linear layer; where elementwise work is fused into it, its name is in `merged`."""
    name, n, k = linear.name, *shard_shape(step, linear)
    weight_format = policy.format_of(name)
    weight_bytes = weight_format.weight_bytes(n, k)
    weight_bytes += n * ELEMENT_BYTES if linear.bias else 0
    rows = step.rows
    flops, read, merged = _epilogue(step, name, n)
    into_cache = step.accounting == "fused" and name in ("k_proj", "v_proj")
    out_bytes = rows * n * ELEMENT_BYTES
    op = gemm(
        name,
        rows * n * k,
        Traffic(
            weight_bytes=weight_bytes,
            read_bytes=(rows * k + read) * ELEMENT_BYTES,
            kv_write_bytes=step.kv_bytes(rows * n) if into_cache else 0,
            write_bytes=0 if into_cache else out_bytes,
        ),
        extra_flops=flops + (rows * n if linear.bias else 0),
        merged=merged,
    )
    return replace(op, matrix=Matrix(format=weight_format, out_features=n, in_features=k))


def _epilogue(step: Pass, name: str, n: int) -> tuple[int, int, tuple[str, ...]]:
    """FLOPs, extra elements read and names of what fused accounting merges into a projection."""
    if step.accounting != "fused":
        return 0, 0, ()
    elements = step.rows * n
    if name in ("q_proj", "k_proj") and step.model.rope:
        return ROPE_FLOPS * elements, 0, ("rope",)
    if name in ROW_SPLIT:
        return RESIDUAL_FLOPS * elements, elements, ("residual",)
    if name == "up_proj":
        gate = elements if step.model.gated_mlp else 0
        return ACTIVATION_FLOPS[step.model.activation] * elements, gate, ("act",)
    return 0, 0, ()


def shard_shape(step: Pass, linear: Linear) -> tuple[int, int]:
    """(N, K) of one device's part of a linear layer."""
    if linear.name in ROW_SPLIT:
        return linear.out_features, step.shard(linear.in_features)
    if linear.name in ("k_proj", "v_proj"):
        return step.kv_dim, linear.in_features
    return step.shard(linear.out_features), linear.in_features


def _norm(step: Pass, rows: int) -> Op:
    model = step.model
    per_element = LAYER_NORM_FLOPS if model.layer_norm else RMS_NORM_FLOPS
    counted = 0 if step.accounting == "paper" else model.norm_elements * ELEMENT_BYTES
    width = rows * model.hidden * ELEMENT_BYTES
    return Op(
        name="norm",
        kind="vector",
        flops=per_element * rows * model.hidden,
        traffic=Traffic(weight_bytes=counted, read_bytes=width, write_bytes=width),
    )


def _residual(step: Pass) -> Op:
    elements = step.rows * step.model.hidden
    return _elementwise("residual", RESIDUAL_FLOPS * elements, 2 * elements, elements)


def _rope(step: Pass) -> Op:
    elements = step.rows * (step.q_dim + step.kv_dim)
    return _elementwise("rope", ROPE_FLOPS * elements, elements, elements)


def _activation(step: Pass) -> Op:
    elements = step.rows * step.shard(step.model.intermediate)
    flops = ACTIVATION_FLOPS[step.model.activation] * elements
    read = 2 * elements if step.model.gated_mlp else elements
    return _elementwise("act", flops, read, elements)


def _elementwise(name: str, flops: int, read_elements: int, written_elements: int) -> Op:
    traffic = Traffic(
        read_bytes=read_elements * ELEMENT_BYTES, write_bytes=written_elements * ELEMENT_BYTES
    )
    return Op(name=name, kind="vector", flops=flops, traffic=traffic)


def _embedding(step: Pass, policy: BitPolicy) -> Op:
    """One row of the table (and of learned positions) per token, never the whole table."""
    model = step.model
    table_bytes = policy.format_of("embedding").weight_bytes(model.vocab, model.hidden)
    row_bytes = ceil_div(table_bytes, model.vocab)
    width = step.rows * model.hidden
    positions = width if model.positions == "learned" else 0
    return Op(
        name="embedding",
        kind="gather",
        flops=positions,
        traffic=Traffic(
            weight_bytes=step.rows * row_bytes + positions * ELEMENT_BYTES,
            write_bytes=width * ELEMENT_BYTES,
        ),
    )


def _lm_head(step: Pass, policy: BitPolicy) -> Op:
    """Logits of the last token of each sequence."""
    n, k = step.shard(step.model.vocab), step.model.hidden
    weight_format = policy.format_of("lm_head")
    op = gemm(
        "lm_head",
        step.batch * n * k,
        Traffic(
            weight_bytes=weight_format.weight_bytes(n, k),
            read_bytes=step.batch * k * ELEMENT_BYTES,
            write_bytes=step.batch * n * ELEMENT_BYTES,
        ),
    )
    return replace(op, matrix=Matrix(format=weight_format, out_features=n, in_features=k))
