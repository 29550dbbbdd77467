"""Inline assembly runs in our emulator: the interpreter cannot."""

from tests.kernels.asm_emulator import install

install()
