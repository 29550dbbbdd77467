"""A GPU that is this CPU: control flow of what only runs on CUDA, kernels by the interpreter.

Tensors asked for on "cuda" are made on the CPU, a graph runs its body once, an event says one
millisecond. Nothing about time or memory can be learned from it.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

PROPERTIES = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=4, L2_cache_size=4096,
    total_memory=1 << 30,
)  # fmt: skip
Generator = torch.Generator


class OnCpu(TorchFunctionMode):
    """Every call that names the device "cuda" is given the CPU."""

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        return function(*("cpu" if is_cuda(a) else a for a in args), **kwargs)


def is_cuda(value):
    return str(value) in ("cuda", "cuda:0") and not isinstance(value, torch.Tensor)


class Event:
    def __init__(self, **_options):
        pass

    def record(self):
        pass

    def synchronize(self):
        pass

    def elapsed_time(self, _end):
        return 1.0


class Graph:
    """Its body runs when it is captured, and never again."""

    def replay(self):
        pass

    def pool(self):
        return None


@contextmanager
def fake_cuda(monkeypatch):
    """torch.cuda as above, for the time of the context."""
    stream = SimpleNamespace(wait_stream=lambda _other: None)
    replaced = {
        "is_available": lambda: True,
        "get_device_properties": lambda _index: PROPERTIES,
        "get_device_capability": lambda *_: (PROPERTIES.major, PROPERTIES.minor),
        "mem_get_info": lambda: (1 << 29, 1 << 30),
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 0,
        "reset_peak_memory_stats": lambda: None,
        "empty_cache": lambda: None,
        "synchronize": lambda: None,
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _stream: nullcontext(),
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": lambda *_, **__: nullcontext(),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "Generator", lambda *_: Generator("cpu"))
    with OnCpu():
        yield
