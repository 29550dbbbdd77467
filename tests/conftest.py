"""Kernels run in Triton's interpreter: the variable is read when a kernel is decorated."""

import os

os.environ["TRITON_INTERPRET"] = "1"
