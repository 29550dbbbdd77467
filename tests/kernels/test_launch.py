"""How a launch reaches Triton: directly for real tensors, wrapped for those of a tracer."""

import torch
from torch._subclasses import FakeTensorMode

from kernels.launch import is_traced


def test_real_tensors_are_launched_directly():
    assert not is_traced(torch.zeros(2))
    assert not is_traced(torch.nn.Parameter(torch.zeros(2)))
    assert not is_traced(torch.zeros(4, 4)[1:].view(torch.int32))


def test_fake_and_functional_tensors_are_wrapped():
    with FakeTensorMode():
        assert is_traced(torch.zeros(2))
    seen = []

    def function(x):
        seen.append(is_traced(x))
        return x + 1

    torch.func.functionalize(function)(torch.zeros(2))
    torch.fx.experimental.proxy_tensor.make_fx(function, tracing_mode="fake")(torch.zeros(2))
    assert seen[-1]
