"""Square roots in machine code: a kernel's, and what ptxas makes of one."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import sass


def _single(instruction: str) -> list[str]:
    """An instruction on two floats as two on one: the pair of R2 is R2 and R3."""
    found = re.match(r"(F(?:FMA|MUL|ADD))2 (.*)", instruction)
    if found is None:
        return [instruction]
    target, *sources = (part.strip() for part in found[2].replace(".reuse", "").split(","))

    def half(operand: str, i: int) -> str:
        pair = re.fullmatch(r"(-?U?R)(\d+)(\.F32x2\.HI_LO)?", operand)
        return f"{pair[1]}{int(pair[2]) + i}" if pair else operand.removesuffix(".F32")

    return [
        f"{found[1]} {', '.join([half(target, i), *(half(s, i) for s in sources)])}" for i in (0, 1)
    ]


def square_roots(instructions: list[str]) -> list[tuple[object, ...]]:
    """What becomes of each reciprocal square root y of a: the operations on a and y up to
    fma(fma(-g, g, a), h, g), with g = a y and h = y / 2, by value numbering.
    """
    values: dict[str, object] = {}
    roots = []

    def operand(text: str) -> object:
        text = text.replace(".reuse", "").strip()
        sign = text.startswith("-") and not text[1:2].isdigit()
        name = text.lstrip("-") if sign else text
        value = values.get(name, name)
        return ("-", value) if sign else value

    for i, instruction in enumerate(x for each in instructions for x in _single(each)):
        name, _, rest = re.sub(r"^@!?U?P\d\s+", "", instruction).partition(" ")
        target, *sources = (part.strip() for part in rest.split(","))
        a = [operand(s) for s in sources]
        # No operand here is subnormal, and no result above 1 or, but for 0's, NaN.
        operation = name.removesuffix(".FTZ").removesuffix(".SAT")
        if operation == "MUFU.RSQ":
            value: object = ("rsq", a[0])
        elif operation == "FMUL" and a[1] == "-1":
            value = ("-", a[0])
        elif operation == "FMUL":
            value = ("mul", *sorted(a[:2], key=str))
        elif operation == "FFMA":
            value = ("fma", *sorted(a[:2], key=str), a[2])
        else:
            value = (instruction, i)
        values[target] = value
        match value:
            case ("fma", *factors, ("mul", *product) as g):
                for y in (f for f in product if isinstance(f, tuple) and f[0] == "rsq"):
                    h, r = ("mul", *sorted((y, "0.5"), key=str)), ("fma", g, ("-", g), y[1])
                    other = ("fma", ("-", g), g, y[1])
                    if h in factors and (r in factors or other in factors):
                        roots.append(y)
    return roots


REFERENCE = """
.version 8.7
.target {target}
.address_size 64
.visible .entry root(.param .u64 p) {{
  .reg .b64 %a; .reg .f32 %x;
  ld.param.u64 %a, [p];
  ld.global.f32 %x, [%a];
  sqrt.rn.f32 %x, %x;
  st.global.f32 [%a], %x;
  ret;
}}
"""


def machine_root(target: str, folder: Path) -> list[str]:
    """What ptxas makes of sqrt.rn.f32, which is rounded correctly, for numbers from 2^-101 on."""
    source, cubin = folder / "root.ptx", folder / "root.cubin"
    source.write_text(REFERENCE.format(target=target))
    sass.run_tool("ptxas", f"-arch={target}", source, "-o", cubin)
    [(_, _, code)] = sass.read(cubin)
    return sass.Kernel(code).way("FMUL|FFMA")
