"""Errors of every operator over the range of its inputs, and equality of bits."""

import os

# Read by triton when it is first imported: its kernels are compared on the CPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
