"""Which kernels of other projects are timed beside ours, and why one of them cannot run here."""

import importlib.util
from dataclasses import dataclass
from functools import partial

from bench.peers import calls
from bench.peers.loaded import GROUP, Load

GROUPED = f"gptq-w4-g{GROUP}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One kernel of another project, and how its weights of one shape are loaded."""

    name: str
    package: str  # that is imported
    format: str  # perfmodel weight format that its weights are worth
    load: Load
    kinds: tuple[str, ...] = ("cuda",)  # devices that it runs on

    @property
    def is_foreign(self) -> bool:
        """Whether it may crash or hang: on a GPU it is tried in a process of its own first."""
        return self.package != "torch"


def _humming(bits: int) -> Peer:
    """Scales of 16 bits and zeros of as many as a code, per group."""
    load, worth = partial(calls.humming, bits), f"w{bits + (16 + bits) / GROUP:g}"
    return Peer(name=f"humming-int{bits}", package="humming", format=worth, load=load)


def _squeezellm(name: str) -> Peer:
    load = partial(calls.squeezellm, name)
    return Peer(name=f"original-{name}", package="quant_cuda", format=name, load=load)


BOTH = ("cuda", "cpu")
PEERS = (
    Peer(name="torch-int4", package="torch", format=GROUPED, kinds=BOTH, load=calls.torch_int4),
    Peer(
        name="torch-int8", package="torch", format="rtn-w8", kinds=("cpu",), load=calls.torch_int8
    ),
    Peer(name="marlin-int4", package="marlin", format="w4.125", load=calls.marlin_int4),
    Peer(name="gemlite-int4", package="gemlite", format=GROUPED, load=calls.gemlite_int4),
    _humming(4),
    _humming(3),
    _squeezellm("squeezellm-w4"),
    _squeezellm("squeezellm-w3"),
    _squeezellm("squeezellm-w3-s0.45-hybrid"),
    Peer(
        name="bitsandbytes-nf4", package="bitsandbytes", format="w4.5", kinds=BOTH,
        load=calls.bitsandbytes_nf4,
    ),
    Peer(name="torchao-int4", package="torchao", format=GROUPED, load=calls.torchao_int4),
)  # fmt: skip


def problem(peer: Peer, kind: str) -> str | None:
    """Why a peer cannot run on this kind of device; None: it can be tried."""
    if kind not in peer.kinds:
        return f"does not run on a {'GPU' if kind == 'cuda' else 'CPU'} here"
    if importlib.util.find_spec(peer.package) is None:
        return f"{peer.package} is not installed"
    return None
