"""What `bench all` runs on a device, in order of importance.

A GPU is lent for minutes. What everything else leans on comes first (rates, checks, roofs), then
one answer to each question, then the same for more shapes, lengths and models.
"""

from bench.everything import Job, Stage
from bench.kernels.subjects import AIMED, default_subjects
from bench.kernels.suite import default_layers
from bench.peers.table import PEERS

SIDE_BY_SIDE = 16  # kernels checked at a time on a GPU, 4 GB each
PEER_LAYERS = ("llama-7b/gate_up_proj", "8192x8192", "llama-7b/q_proj")
# The other shapes of which something is to be reached, and some to fit a prediction on.
MORE_LAYERS = (
    "llama-7b/gate_proj", "28672x8192", "llama-7b/down_proj", "8192x16384", "llama-7b/qkv_proj",
    "81920x8192",
)  # fmt: skip
CLOSELY = ("22016x4096", "8192x8192")  # LLaMA-7B gate-up; the shape that Marlin published
PROFILED = ("squeezellm-w4", "squeezellm-w3")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
GENERATED = (
    "fp16", "squeezellm-w3", "squeezellm-w4", "gptq-w3", "gptq-w4", "squeezellm-w3-s0.45",
    "squeezellm-w4-s0.45", "gptq-w4-g128", "squeezellm-w3-s0.05", "gptvq-2d-w3",
)  # fmt: skip
MORE_TEXT = (
    ("llama-7b", "1024"), ("llama-13b", "128"), ("llama-30b", "128"), ("llama-65b", "128"),
    ("llama-13b", "1024"), ("llama-30b", "1024"), ("llama-65b", "1024"),
)  # fmt: skip
QUANTIZED = (("kmeans-w3",), ("gptq-w4-g128",), ("fisher",), ("gptvq-2d-w3",))
WHOLE_MODELS = (("kmeans-w3", "32"), ("kmeans-w4", "32"))  # blocks of LLaMA-7B
# A CPU shows a step of LLaMA-7B on two of its blocks.
TWO_BLOCKS = ("--layers", "2", "--new", "16", "--weights", "fp16,gptq-w4,squeezellm-w3")


def plan(kind: str, *, threads: int | None = None) -> list[Stage]:
    """The stages for a kind of device ("cuda" or "cpu")."""
    return _gpu_plan() if kind == "cuda" else _cpu_plan(threads)


def _cpu_plan(threads: int | None) -> list[Stage]:
    device = ("--device", "cpu") + (() if threads is None else ("--threads", str(threads)))
    commands = {
        "probe": [("probe",)],
        "kernels": [("kernels", "--layers", layer.name) for layer in default_layers("cpu")],
        "generate": [("generate", *TWO_BLOCKS)],
    }
    return [
        Stage(name=name, jobs=tuple(Job(arguments=(*a, *device), limit_s=120) for a in each))
        for name, each in commands.items()
    ]


def _gpu_plan() -> list[Stage]:
    """Expected seconds of each stage: docs/gpu.md."""
    trials = [peer.name for peer in PEERS if peer.is_foreign and "cuda" in peer.kinds]
    checks = tuple(_gpu(120, "check", name) for name in default_subjects("cuda"))
    sanitizers = tuple(_gpu(110, "sanitize", tool) for tool in SANITIZERS)
    return [
        _alone("rates", _gpu(40, "rates")),
        Stage(
            name="check",
            jobs=(*(_gpu(100, "peer", name) for name in trials), *checks),
            width=SIDE_BY_SIDE,
        ),
        _alone("probe", _command(90, "probe")),
        _alone("kernels", *(_kernels(100, layer) for layer in PEER_LAYERS)),
        _alone("shapes", _kernels(120, ",".join(MORE_LAYERS), "--no-peers")),
        _alone("generate", _text("llama-7b", "128")),
        _alone("quantize", *(_gpu(60, "quantize", *case) for case in QUANTIZED)),
        Stage(name="sanitize", jobs=sanitizers, width=len(SANITIZERS)),
        _alone("isolated", *(_gpu(45, "isolated", shape) for shape in CLOSELY)),
        _alone("more text", *(_text(*case) for case in MORE_TEXT)),
        _alone("tune", *(_gpu(45, "tune", shape) for shape in CLOSELY)),
        _alone("profile", *(_gpu(45, "profile", name, CLOSELY[0]) for name in PROFILED)),
        _alone("whole models", *(_gpu(300, "quantize", *case) for case in WHOLE_MODELS)),
        _alone(
            "everything",
            *(
                _command(120, "kernels", "--layers", layer.name, "--no-peers")
                for layer in default_layers("cuda")
            ),
        ),
    ]


def _alone(name: str, *jobs: Job) -> Stage:
    """One job at a time: what is timed, or may take all of the device."""
    return Stage(name=name, jobs=jobs)


def _gpu(limit_s: float, *arguments: str) -> Job:
    return Job(module="bench.gpu", arguments=arguments, limit_s=limit_s)


def _command(limit_s: float, *arguments: str) -> Job:
    return Job(arguments=(*arguments, "--device", "cuda"), limit_s=limit_s)


def _kernels(limit_s: float, layers: str, *options: str) -> Job:
    return _command(limit_s, "kernels", "--layers", layers, "--subjects", ",".join(AIMED), *options)


def _text(model: str, new: str) -> Job:
    weights = ",".join(GENERATED)
    return _command(200, "generate", "--model", model, "--new", new, "--weights", weights)
