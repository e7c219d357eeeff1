"""The operators in Triton.

Each module mirrors one of the headers in `csrc/include/genkern`: the same helper names in snake
case, the same order of operations. A family's module holds its kernels and one launcher an
operator, with the operator's arguments. Nothing here is imported before a call needs it.
"""
