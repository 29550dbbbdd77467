"""Diagonals of the Fisher information of the linear layers of a causal language model.

Two forms, both in float32:
sequence  F = sum over sequences of (d loss / d W)^2, loss the mean over the tokens of a sequence:
          SqueezeLLM, arXiv 2306.07629, section 4.1 and its code. For clustering.
token     H = 1/tokens sum over positions s of (d_s^2)^T (x_s^2), with x_s the input of the layer
          and d_s the gradient of the summed loss at its output: per-position squares, terms
          between positions dropped. dNLL = 1/2 sum H dW^2 forecasts the loss (`forecast`).

Only the inputs of the blocks are kept. Backward, block by block, the block runs once more, its
gradients are squared, added and dropped: the peak is one block's gradients and activations.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from quantizer.methods.matrix import SettingsError

Progress = Callable[[int, int], None]  # sequences done, of how many


class _Call(msgspec.Struct, frozen=True, kw_only=True):
    """How the model called a block."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def fisher_statistics(
    model: nn.Module,
    ids: Tensor,
    *,
    blocks: Mapping[str, nn.Module],
    token: bool = False,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Diagonal of every linear layer in the blocks, float32 on the CPU, by parameter name.

    model: gives `.logits` for input ids; left as it was. ids: (S, T) int64, T >= 2.
    blocks: the decoder blocks in their order, by name in the model. token: the form H, not F.

    Raises: SettingsError if a diagonal is not finite.
    """
    sums = _zeros(blocks)
    predicted = _predictions(ids)
    for name, x, d in _layers_backward(model, ids, blocks, progress):
        square = _token_square(x, d, predicted) if token else (d.T @ x).square()
        sums[name] += square.to(sums[name].device)
    if token:
        for total in sums.values():
            total.div_(ids.shape[0] * predicted)
    for name, total in sums.items():
        if not bool(torch.isfinite(total).all()):
            raise SettingsError(f"Fisher information of {name} is not finite; use float32 or bf16")
    return {name: total.cpu() for name, total in sums.items()}


def change_losses(
    model: nn.Module,
    ids: Tensor,
    changes: Mapping[str, Mapping[str, Tensor]],
    *,
    blocks: Mapping[str, nn.Module],
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Forecast rise of the loss, in nats per token, when a weight changes by dW.

    1/2 of the mean over positions of (d_s^T dW x_s)^2. The diagonal H is its part without products
    of two weights: where the errors of a row go together, or make up for each other as GPTQ lets
    them, those products decide. changes: several sets of (N, K) changes, each by parameter name;
    one pass serves them all.

    Raises: SettingsError.
    """
    predicted = _predictions(ids)
    sums = {label: dict.fromkeys(own, 0.0) for label, own in changes.items()}
    for name, x, d in _layers_backward(model, ids, blocks, progress):
        for label, own in changes.items():
            if name in own:
                along = ((x @ own[name].to(x).T) * d).sum(dim=1) * predicted  # (T,)
                sums[label][name] += float(along.double().square().sum())
    half = 0.5 / (ids.shape[0] * predicted)
    return {
        label: {name: half * total for name, total in own.items()} for label, own in sums.items()
    }


def _layers_backward(
    model: nn.Module,
    ids: Tensor,
    blocks: Mapping[str, nn.Module],
    progress: Progress | None,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Per sequence, last block first: parameter name, its inputs (T, K) and gradients (T, N).

    The gradients are those of the sequence's mean loss.
    """
    with _frozen(model):
        for done, sequence in enumerate(ids, start=1):
            calls, gradient = _loss_gradient(model, sequence[None], list(blocks.values()))
            for prefix, block in reversed(blocks.items()):
                gradient, parts = _backward(block, calls.pop(), gradient)
                for name, (x, d) in parts.items():
                    yield f"{prefix}.{name}.weight", x, d
            if progress is not None:
                progress(done, ids.shape[0])


def _predictions(ids: Tensor) -> int:
    """Per sequence. Raises: SettingsError."""
    if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] < 2:
        raise SettingsError(f"shape of ids is {tuple(ids.shape)}, expected (S, T), T at least 2")
    return ids.shape[1] - 1


def _token_square(x: Tensor, d: Tensor, predicted: int) -> Tensor:
    """Sum over positions of (d^2)^T (x^2), with the mean's gradient d made the sum's."""
    return (d * predicted).square().T @ x.square()


def _zeros(blocks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Beside the weights where the sums take no more than half of the room that is left there.

    A sum on the CPU costs a copy of every gradient of every sequence.
    """
    weights = {
        f"{prefix}.{name}.weight": module.weight
        for prefix, block in blocks.items()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    needed = 4 * sum(weight.numel() for weight in weights.values())
    beside = all(weight.is_cuda for weight in weights.values())
    beside = beside and 2 * needed < torch.cuda.mem_get_info()[0]
    return {
        name: torch.zeros(weight.shape, device=weight.device if beside else "cpu")
        for name, weight in weights.items()
    }


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter wants a gradient, and nothing is random; both as before afterwards."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.train(False)
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        model.train(training)


def _loss_gradient(
    model: nn.Module, ids: Tensor, blocks: list[nn.Module]
) -> tuple[list[_Call], Tensor]:
    """How each block was called, and the gradient of the mean loss at the last block's output."""
    calls: list[_Call] = []
    leaves: list[Tensor] = []

    def remember(_block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(_Call(args=args, kwargs=kwargs))

    def cut(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        leaves.append(_hidden(output).detach().requires_grad_())
        return (leaves[-1], *output[1:]) if isinstance(output, tuple) else leaves[-1]

    hooks = [block.register_forward_pre_hook(remember, with_kwargs=True) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(cut))
    try:
        with torch.enable_grad():
            logits = model(ids, use_cache=False).logits[0, :-1].float()
            loss = nn.functional.cross_entropy(logits, ids[0, 1:])
    finally:
        for hook in hooks:
            hook.remove()
    return calls, torch.autograd.grad(loss, leaves[-1])[0]


def _backward(
    block: nn.Module, call: _Call, gradient: Tensor
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Gradient at the block's input, and per linear layer its inputs (T, K) and gradients (T, N).

    A layer that ran more than once has all its positions, one that did not run is absent.
    """
    seen: list[tuple[str, Tensor, Tensor]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda _linear, args, output: seen.append((name, args[0].detach(), output))

    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear)}
    hooks = [module.register_forward_hook(watch(name)) for name, module in linears.items()]
    try:
        with torch.enable_grad():
            leaf, output = _run(block, call)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [y for _, _, y in seen]
    before, *gradients = torch.autograd.grad(output, [leaf, *outputs], gradient)
    runs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, x, _), d in zip(seen, gradients, strict=True):
        runs.setdefault(name, []).append((x.flatten(0, -2).float(), d.flatten(0, -2).float()))
    parts = {
        name: (torch.cat([x for x, _ in pairs]), torch.cat([d for _, d in pairs]))
        for name, pairs in runs.items()
    }
    return before, parts


def _run(block: nn.Module, call: _Call) -> tuple[Tensor, Tensor]:
    """The block again on its hidden states as a leaf; the leaf and what comes out."""
    if call.args:
        leaf = call.args[0].detach().requires_grad_()
        return leaf, _hidden(block(leaf, *call.args[1:], **call.kwargs))
    leaf = call.kwargs["hidden_states"].detach().requires_grad_()
    return leaf, _hidden(block(**{**call.kwargs, "hidden_states": leaf}))


def _hidden(output: Any) -> Tensor:
    """Hidden states of a block's output: itself, or the first of a tuple."""
    return output[0] if isinstance(output, tuple) else output
