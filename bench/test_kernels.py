"""Every kernel of this device on layers of LLaMA-7B, checked against FP64, then timed cold.

`pytest bench/test_kernels.py --history DIR` keeps what it measures; `python -m bench kernels`
measures more layers and shows ratios. On a CPU that others use too, add `--threads 1`.
"""

import pytest

from bench.environment import default_kind
from bench.kernels.measure import Case, measure_case
from bench.kernels.subjects import default_subjects, subject
from bench.kernels.suite import choose_layers
from bench.session import bench_of
from perfmodel.errors import UsageError

LAYERS = {  # a CPU takes seconds per case
    "cpu": ("llama-7b/q_proj",),
    "cuda": ("llama-7b/q_proj", "llama-7b/gate_up_proj", "llama-7b/down_proj"),
}


def pytest_generate_tests(metafunc):
    kind = metafunc.config.getoption("device") or default_kind()
    metafunc.parametrize("layer", choose_layers(LAYERS[kind]), ids=lambda layer: layer.tensor)
    metafunc.parametrize("name", default_subjects(kind))


@pytest.fixture(scope="module")
def suite(environment, tmp_path_factory):
    return bench_of(environment, tmp_path_factory.mktemp("results"))


def test_kernel(benchmark, measured, suite, layer, name):
    benchmark.group = layer.name
    try:
        measurement = measure_case(suite, Case(layer=layer, subject=subject(name)))
    except UsageError as error:
        pytest.skip(str(error))
    measured(measurement)
