"""Methods that see activations (GPTQ, AWQ): block after block, each fed by the quantized ones.

The input of block l + 1 is the output of the finished block l, read back from its shard; a run
that goes on therefore computes what an uninterrupted one does, bit for bit.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from quantizer.checkpoints.checkpoint import Checkpoint, hash_tensors, load_tensors, read_tensors
from quantizer.checkpoints.checkpoint_model import block_of, dense_layer, skeleton
from quantizer.checkpoints.safe_files import read_header, shard_path
from quantizer.errors import CheckFailedError, PerfmodelError
from quantizer.methods.awq_block import scale_block
from quantizer.methods.hessian import InputSums, accumulate_inputs
from quantizer.methods.matrix import QuantizedMatrix, Statistics
from quantizer.methods.registry import quantize_matrix
from quantizer.run import ledger
from quantizer.run.executors import Outcome
from quantizer.run.lease import lease_path, patiently_leased
from quantizer.run.work import (
    BlockResult,
    BlockTask,
    block_number,
    commit_block,
    fisher_of,
    identity_of,
    layer_records,
)


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """What a block is called with: hidden states per sequence, the rest the same for all."""

    hidden: list[Tensor]  # (1, T, h) each
    extra: dict[str, Any]


class _CapturedError(Exception):
    """Ends a forward pass when the first block has been reached."""


def run_sequence(
    checkpoint: Checkpoint,
    tasks: Sequence[BlockTask],
    ids: Tensor,
    *,
    on_result: Callable[[BlockResult], None],
    stopping: Callable[[], bool],
) -> Outcome:
    """Quantize the decoder blocks in their order. ids (S, T) int64.

    Raises: CheckFailedError if a block cannot be quantized: the next ones depend on it.
    """
    model = skeleton(checkpoint)
    layer = block_of(model, checkpoint, 0)
    calls = capture_calls(model, layer, ids)
    before = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    results = []
    for task in tasks:
        if stopping():
            return Outcome(results=results, failures=[], stopped=True)
        result, before = _run_one(checkpoint, task, layer, calls, before)
        results.append(result)
        on_result(result)
        calls = Calls(hidden=run_block_on(layer, calls), extra=calls.extra)
    return Outcome(results=results, failures=[], stopped=False)


def capture_calls(model: Any, layer: nn.Module, ids: Tensor) -> Calls:
    """The inputs of the first block for every sequence."""
    hidden: list[Tensor] = []
    extra: dict[str, Any] = {}

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rest = dict(kwargs)
        hidden.append(args[0] if args else rest.pop("hidden_states"))
        extra.update(rest)
        raise _CapturedError

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            for sequence in ids:
                try:
                    model(input_ids=sequence[None], use_cache=False)
                except _CapturedError:
                    continue
    finally:
        handle.remove()
    return Calls(hidden=hidden, extra=extra)


def run_block_on(layer: nn.Module, calls: Calls) -> list[Tensor]:
    """The output of a block for every sequence."""
    with torch.no_grad():
        outputs = [layer(hidden, **calls.extra) for hidden in calls.hidden]
    return [output[0] if isinstance(output, tuple) else output for output in outputs]


def input_statistics(layer: nn.Module, names: Sequence[str], calls: Calls) -> dict[str, Statistics]:
    """Statistics of the inputs of the named linear layers of a block."""
    sums: dict[str, InputSums | None] = dict.fromkeys(names)

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            sums[name] = accumulate_inputs(sums[name], args[0])

        return hook

    handles = [layer.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in names]
    try:
        run_block_on(layer, calls)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.statistics() for name, total in sums.items() if total is not None}


def _run_one(
    checkpoint: Checkpoint, task: BlockTask, layer: nn.Module, calls: Calls, before: str
) -> tuple[BlockResult, str]:
    """Finish one block, unless it is, and leave its quantized weights in `layer`."""
    begin = time.perf_counter()
    out, prefix = Path(task.out), checkpoint.block_prefix(int(block_number(task.block)))
    tensors = load_tensors(checkpoint, checkpoint.names_of(block_number(task.block)))
    fisher = fisher_of(task)
    after = before + (hash_tensors(fisher) if fisher else "")
    identity = identity_of(task, tensors, hashlib.sha256(after.encode()).hexdigest())
    with patiently_leased(lease_path(out, task.block)):
        ledger.sweep(out, task.block)
        ledger.sweep(out / ledger.FOLDER, task.block)
        made = ledger.state(out, identity) != "done"
        if made:
            matrices, foldings = _quantized(task, layer, prefix, calls, tensors, fisher)
            state = layer.state_dict()
            rest = {n: state[n.removeprefix(prefix)].to(t.dtype) for n, t in tensors.items()}
            commit_block(out, identity, rest | foldings, matrices)
    layer.load_state_dict(_finished(out, task.block, prefix))
    seconds = time.perf_counter() - begin
    became = "made" if made else "kept"
    return BlockResult(block=task.block, state=became, seconds=seconds), identity.key


def _quantized(
    task: BlockTask,
    layer: nn.Module,
    prefix: str,
    calls: Calls,
    tensors: dict[str, Tensor],
    fisher: dict[str, Tensor],
) -> tuple[dict[str, QuantizedMatrix], dict[str, Tensor]]:
    """The quantized layers of a block, whose other tensors AWQ changes in `layer`; its foldings.

    Raises: CheckFailedError.
    """
    layer.load_state_dict({n.removeprefix(prefix): t.float() for n, t in tensors.items()})
    settings = {name.removeprefix(prefix): one for name, one in task.settings.items()}
    try:
        statistics = {
            name: replace(inputs, fisher=fisher.get(prefix + name))
            for name, inputs in input_statistics(layer, [*settings], calls).items()
        }
        dtypes = {name.removeprefix(prefix): tensor.dtype for name, tensor in tensors.items()}
        foldings: dict[str, Tensor] = {}
        if any(one.method == "awq" for one in settings.values()):
            statistics, foldings = scale_block(layer, statistics, settings, dtypes)
        matrices = {}
        for name, one in settings.items():
            weight = layer.get_submodule(name).weight.detach()
            matrices[prefix + name] = quantize_matrix(weight, statistics[name], one)
    except PerfmodelError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckFailedError(f"{task.block} cannot be quantized: {reason}") from error
    return matrices, {prefix + name: tensor for name, tensor in foldings.items()}


def _finished(out: Path, block: str, prefix: str) -> dict[str, Tensor]:
    """Float32 state of a block from its shard."""
    path = shard_path(out, f"{block}.safetensors")
    records = layer_records(read_header(path)[1], path)
    tensors = read_tensors(path)
    state = {}
    for name, record in records.items():
        parts = {p.removeprefix(f"{name}."): t for p, t in tensors.items() if p.startswith(name)}
        state[f"{name}.weight"] = dense_layer(name, parts, record)
        tensors = {
            p: t for p, t in tensors.items() if not p.startswith(f"{name}.") or p == f"{name}.bias"
        }
    state |= {name: tensor.float() for name, tensor in tensors.items()}
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}
