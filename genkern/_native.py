"""Finds and loads the native libraries, and remembers why one could not be loaded."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

_DIRECTORY = Path(__file__).parent
_reasons: dict[str, str | None] = {}


def build_facts() -> dict[str, Any]:
    """What setup.py wrote about the build; empty for a source tree that was never built."""
    path = _DIRECTORY / "_build.json"
    facts: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return facts


def _major(version: str | None) -> str | None:
    return version.split(".")[0] if version else None


def _load(device: str) -> str | None:
    """Loads a device's library and returns None, or the reason why it cannot be."""
    path = _DIRECTORY / f"libgenkern_{device}.so"
    if not path.exists():
        return f"{path.name} was not built"
    if device == "cuda":
        built, running = _major(build_facts().get("cuda")), _major(torch.version.cuda)
        if running is None:
            return f"{path.name} needs a CUDA build of torch, this is {torch.__version__}"
        if built != running:
            return f"{path.name} was built for CUDA {built}, torch has CUDA {running}"
    # To register operators twice would end the process.
    registered = hasattr(getattr(torch.ops, f"_genkern_{device}"), "kl")
    if registered and str(path.resolve()) not in torch.ops.loaded_libraries:
        return f"another {path.name} is loaded in this process"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        warnings.warn(f"genkern: {path.name} does not load: {error}", RuntimeWarning, stacklevel=2)
        return f"{path.name} does not load: {error}"
    return None


def unavailable_reason(device: str) -> str | None:
    """None if the library for a device type is loaded, loading it when first asked."""
    if device not in ("cpu", "cuda"):
        return f"there is no native library for {device}"
    if device not in _reasons:
        _reasons[device] = _load(device)
    return _reasons[device]
