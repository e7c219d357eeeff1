"""genkern: fast, trainable, reproducible kernels for generative models in PyTorch."""

from importlib import metadata as _metadata

from genkern import diffusion, gan, random, vae
from genkern._info import info
from genkern.backends import explain, use_backend

try:
    __version__ = _metadata.version("genkern")
except _metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"

__all__ = ["__version__", "diffusion", "explain", "gan", "info", "random", "use_backend", "vae"]
