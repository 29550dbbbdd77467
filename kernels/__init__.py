"""Packed weight layouts and the Triton kernels that run them; import the submodules by name.

Empty on purpose: transformers may import any package called `kernels`, so importing this one
does nothing, loads nothing and cannot fail.
"""

__version__ = "0.0.0"
