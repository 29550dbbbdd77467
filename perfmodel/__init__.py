"""Predict from a datasheet how fast a GPU runs a LLaMA at any weight bit width.

>>> from perfmodel import BitPolicy, Workload, load_hardware, load_model, load_stack
>>> from perfmodel import parse_format, predict
>>> fp16, w3 = parse_format("fp16"), parse_format("squeezellm-w3-s0.45")
>>> policy = BitPolicy(linear=w3, lm_head=fp16, embedding=fp16)
>>> workload = Workload(model=load_model("llama-7b"), policy=policy, context=128)
>>> prediction = predict(workload, load_hardware("a6000"), load_stack("ideal"))
>>> f"{1000 * prediction.time_s:.2f} ms, {prediction.bound}-bound"
'3.79 ms, memory-bound'
"""

from perfmodel.errors import PerfmodelError
from perfmodel.format_names import parse_format
from perfmodel.formats import BitPolicy, WeightFormat
from perfmodel.hardware import HardwareSpec, load_hardware
from perfmodel.models import load_model
from perfmodel.ops import Op, Traffic
from perfmodel.prediction import Prediction, predict
from perfmodel.shape import ModelShape
from perfmodel.stack_files import load_stack
from perfmodel.stacks import Stack
from perfmodel.workload import Workload

__version__ = "0.1.0"

__all__ = [
    "BitPolicy",
    "HardwareSpec",
    "ModelShape",
    "Op",
    "PerfmodelError",
    "Prediction",
    "Stack",
    "Traffic",
    "WeightFormat",
    "Workload",
    "load_hardware",
    "load_model",
    "load_stack",
    "parse_format",
    "predict",
]
