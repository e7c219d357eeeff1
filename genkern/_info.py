"""`python -m genkern info`: versions, what was built, what is usable and why not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import torch

from genkern import _native

CAPABILITIES = ("baseline", "avx2", "avx512")  # csrc/cpu/capability.h

# What each variable may be, and what it is for.
VARIABLES = {
    "GENKERN_BACKEND": (("native", "triton", "reference"), "the backend of every call"),
    "GENKERN_CPU_CAPABILITY": (CAPABILITIES, "the most the CPU kernels may use"),
    "GENKERN_BUILD": (("auto", "none", "cpu", "cuda"), "what an install builds"),
}


def cpu_capability() -> str | None:
    """The instruction set that the native CPU kernels run with, or None without them."""
    if _native.unavailable_reason("cpu") is not None:
        return None
    return CAPABILITIES[torch.ops._genkern_cpu.capability()]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def info() -> str:
    """Describes the installation: versions, what was built, what is usable and why not.

    Example:
        >>> import genkern
        >>> print(genkern.info().splitlines()[0].split()[0])
        genkern
    """
    from genkern._triton import launch

    facts = _native.build_facts()
    lines = [
        f"genkern   {_version('genkern')}",
        f"torch     {torch.__version__} (CUDA {torch.version.cuda or 'no'})",
        f"triton    {_version('triton')}",
        f"numpy     {_version('numpy')}",
        f"python    {sys.version.split()[0]} on {platform.platform()}",
        "",
        "built",
        f"  parts    {', '.join(facts.get('parts', [])) or 'none: pure Python'}",
    ]
    lines += [
        f"  {key:8} {facts[key]}" for key in ("mode", "compiler", "torch", "cuda") if facts.get(key)
    ]
    lines += [f"  note     {note}" for note in facts.get("notes", [])]
    capability = cpu_capability()
    native_cpu = _native.unavailable_reason("cpu") or f"ready, {capability}"
    lines += [
        "",
        "usable",
        f"  native on cpu     {native_cpu}, {torch.get_num_threads()} threads"
        if capability
        else f"  native on cpu     no: {native_cpu}",
        f"  native on cuda    {_ready(_native.unavailable_reason('cuda'))}",
        f"  triton            {_ready(launch.unavailable_reason())}",
        "  reference         ready, on every device",
        "",
        "environment",
    ]
    for name, (words, meaning) in VARIABLES.items():
        value = os.environ.get(name) or "unset"
        known = value in words or value == "unset"
        names = f"{', '.join(words[:-1])} or {words[-1]}"
        lines.append(f"  {name:23} {value:9} {'' if known else 'is not '}{names}: {meaning}")
    return "\n".join(lines)


def _ready(reason: str | None) -> str:
    return "ready" if reason is None else f"no: {reason}"
