"""Tiny models, one thread, and Triton's interpreter for the few tests that run kernels."""

import pytest
import torch

from tests.kernels.asm_emulator import install
from tests.quantizer.models import write_ids, write_model

install()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Matrices of 32 x 32 are slower with two."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def ids(tmp_path_factory):
    return write_ids(tmp_path_factory.mktemp("calibration") / "ids.npy")


@pytest.fixture(scope="session")
def text_ids(tmp_path_factory):
    return write_ids(tmp_path_factory.mktemp("evaluation") / "text.npy", seed=1)
