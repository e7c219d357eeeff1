"""What Triton has no function for, in NVIDIA's instructions, and the same for other targets.

No bit of a result depends on the target.
"""
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from genkern._triton.launch import interpreted

INTERPRETED = interpreted()


@triton.constexpr_function
def cuda_arch():
    """10 times the compute capability of NVIDIA's GPUs, 0 for what else code is made for."""
    target = None if INTERPRETED else tl.target_info.current_target()
    return target.arch if target is not None and target.backend == "cuda" else 0


@triton.constexpr_function
def in_pairs(*operands):
    """Whether one instruction does an operation on two elements, rounding each: from sm_100 on."""
    tensors = [x for x in operands if isinstance(x, tl.tensor)]
    several = any(x.numel.value > 1 for x in tensors)
    return cuda_arch() >= 100 and several and all(x.dtype == tl.float32 for x in tensors)


@triton.constexpr_function
def is_double(*operands):
    return any(isinstance(x, tl.tensor) and x.dtype == tl.float64 for x in operands)


@triton.jit
def double(x):
    """x, a tensor if it is a constant: `tl.fma` before Triton 3.9 takes those for float32."""
    if is_double(x):
        return x
    else:
        return tl.full((), x, tl.float64)


@triton.jit
def fma(a, b, c):
    if in_pairs(a, b, c):
        return tl.inline_asm_elementwise(
            """{ .reg .b64 a, b, c;
            mov.b64 a, {$2, $3}; mov.b64 b, {$4, $5}; mov.b64 c, {$6, $7};
            fma.rn.f32x2 a, a, b, c; mov.b64 {$0, $1}, a; }""",
            "=r,=r,r,r,r,r,r,r", [a, b, c], tl.float32, True, 2,
        )  # fmt: skip
    elif is_double(a, b, c):
        return tl.fma(double(a), double(b), double(c))
    else:
        return tl.fma(a, b, c)


@triton.jit
def on_pairs(OPERATION: tl.constexpr, a, b):
    """mul, add or sub, two elements an instruction."""
    return tl.inline_asm_elementwise(
        "{ .reg .b64 a, b; mov.b64 a, {$2, $3}; mov.b64 b, {$4, $5}; "
        + OPERATION
        + ".rn.f32x2 a, a, b; mov.b64 {$0, $1}, a; }",
        "=r,=r,r,r,r,r", [a, b], tl.float32, True, 2,
    )  # fmt: skip


@triton.jit
def mul(a, b):
    if in_pairs(a, b):
        return on_pairs("mul", a, b)
    else:
        return a * b


@triton.jit
def add(a, b):
    if in_pairs(a, b):
        return on_pairs("add", a, b)
    else:
        return a + b


@triton.jit
def sub(a, b):
    if in_pairs(a, b):
        return on_pairs("sub", a, b)
    else:
        return a - b


@triton.jit
def wide_product(x, y):
    """The 64 bits of the product of two words."""
    if cuda_arch() > 0:
        # One instruction; of the expression the compiler may make a 64-bit product.
        return tl.inline_asm_elementwise(
            "mul.wide.u32 $0, $1, $2;", "=l,r,r", [x, y], tl.uint64, True, 1
        )
    else:
        return x.to(tl.uint64) * y
