"""`python -m genkern info`: versions, what was built, what is usable and why not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import torch

from genkern import _native

VARIABLES = {
    "GENKERN_BACKEND": "native, triton or reference: the backend of every call",
    "GENKERN_CPU_CAPABILITY": "baseline, avx2 or avx512: the most the CPU kernels may use",
    "GENKERN_BUILD": "auto, none, cpu or cuda: what an install builds",
}

_CAPABILITIES = ("baseline", "avx2", "avx512")  # csrc/cpu/capability.h


def cpu_capability() -> str | None:
    """The instruction set that the native CPU kernels run with, or None without them."""
    if _native.unavailable_reason("cpu") is not None:
        return None
    return _CAPABILITIES[torch.ops._genkern_cpu.capability()]


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
    lines += [
        f"  {name:23} {os.environ.get(name, 'unset'):9} {meaning}"
        for name, meaning in VARIABLES.items()
    ]
    return "\n".join(lines)


def _ready(reason: str | None) -> str:
    return "ready" if reason is None else f"no: {reason}"
