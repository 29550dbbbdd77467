"""Peers as contestants: on the same device, in the same process, in turn with ours.

A peer that is not installed, does not run on this device, is wrong, or failed when it was tried
alone leaves a line with the reason.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from bench.kernels.check import relative_error
from bench.kernels.contest import Bench, Contestant, Results
from bench.kernels.suite import Layer
from bench.measurement import Scalar
from bench.peers.loaded import Loaded, PeerError
from bench.peers.table import PEERS, Peer, problem
from bench.timing import cuda_graph_sampler
from perfmodel.errors import UsageError

SUITE = "peers"
TRIED_SHAPE = (4096, 4096)
MOST_WORDS = 200  # characters of a reason


def contestants(bench: Bench, layer: Layer, peers: Iterable[Peer]) -> list[Contestant]:
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
        except Exception as error:  # of code that is not ours: anything
            line = {"kind": "skipped", "name": peer.name, "layer": layer.name}
            bench.results.add_line({**line, "reason": _first_line(error)})
    return found


def try_alone(results: Results, name: str) -> None:
    """Load, check and capture a peer in this process, which it may crash; say how it went.

    Raises: UsageError for an unknown name.
    """
    peer = next((peer for peer in PEERS if peer.name == name), None)
    if peer is None:
        have = ", ".join(peer.name for peer in PEERS)
        raise UsageError(f"no peer {name!r}; have: {have}")
    line = {"kind": "peer", "name": name}
    try:
        loaded, x, error = _checked(peer, TRIED_SHAPE, "cuda")
        seconds = cuda_graph_sampler(lambda _: loaded.run(x, loaded.weights), 1)()
    except Exception as error:  # as above
        results.add_line({**line, "ok": False, "reason": _first_line(error)})
    else:
        results.add_line({**line, "key": _trial(peer), "ok": True, "error": error, "s": seconds})


def _trial(peer: Peer) -> str:
    return f"peer:{peer.name}"


def _first_line(error: Exception) -> str:
    words = str(error).strip().partition("\n")[0][:MOST_WORDS]
    return words if isinstance(error, PeerError) else f"{type(error).__name__}: {words}"


def _checked(peer: Peer, shape: tuple[int, int], kind: str) -> tuple[Loaded, Tensor, float]:
    """Its weights, activations, and its error on them. Raises: PeerError; whatever it raises."""
    why = problem(peer, kind)
    if why:
        raise PeerError(why)
    loaded = peer.load(shape, kind)
    x = torch.randn((1, shape[1]), device=kind).half().to(loaded.dtype)
    expected = x.double() @ loaded.values.double().T
    error = relative_error(loaded.run(x, loaded.weights), expected)
    if not error <= loaded.limit:
        raise PeerError(f"is wrong: error {error:.1e}, at most {loaded.limit:.0e}")
    return loaded, x, error


def _contestant(bench: Bench, peer: Peer, params: dict[str, int | float | str]) -> Contestant:
    """Raises: PeerError; whatever the peer raises."""
    kind, shape = bench.environment.kind, (int(params["rows"]), int(params["columns"]))
    untried = peer.is_foreign and not bench.results.is_done(_trial(peer))
    if bench.is_cuda and untried and not problem(peer, kind):
        raise PeerError(f"not tried alone, or failed: python -m bench.gpu peer {peer.name}")
    loaded, x, error = _checked(peer, shape, kind)
    copies = bench.cold_copies(loaded.weight_bytes)
    others = [tuple(w.clone() for w in loaded.weights) for _ in range(copies - 1)]
    facts: dict[str, Scalar] = {
        "format": peer.format, "error": error, "error_limit": loaded.limit, "copies": copies,
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
