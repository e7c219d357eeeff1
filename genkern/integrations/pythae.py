"""pythae's VAE and BetaVAE with genkern's kernels.

`apply()` replaces `forward`: the sample, the KL and the squared error are one kernel each way. The
binary cross-entropy stays PyTorch's, since pythae's decoders return probabilities.
"""

from __future__ import annotations

import importlib.metadata
import logging
from typing import Any

import torch
import torch.nn.functional as F
from pythae.models import VAE, BetaVAE
from pythae.models.base.base_utils import ModelOutput
from torch import Tensor

from genkern import vae
from genkern._ops import checks
from genkern._ops import diffusion as ops
from genkern._ops.elements import REDUCTIONS, arithmetic
from genkern.integrations._noise import check_source, drawn
from genkern.integrations._patch import Applied, Change, Patch, say_once

__all__ = ["TESTED", "apply", "revert"]

# Releases of pythae whose lines these are known to replace.
TESTED = ("0.1.2",)
_VERSION = importlib.metadata.version("pythae")

_LOGGER = logging.getLogger(__name__)
_PATCH = Patch(_LOGGER)
_FORWARD = {kind: kind.forward for kind in (VAE, BetaVAE)}
_CALLS = {kind: (kind.loss_function, kind._sample_gauss) for kind in (VAE, BetaVAE)}


def _squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """1/2 ||x_hat - x||^2, (B,)."""
    row = torch.tensor([[1.0, 0.0, 0.5, 0.0]], dtype=arithmetic(x_hat.dtype), device=x_hat.device)
    code = REDUCTIONS["sample"]
    return ops.noise_loss(x_hat, x, None, None, row, None, None, code)


def _fit(kind: Any, self: Any, mu: Tensor, log_var: Tensor) -> bool:
    """Whether these are the lines that the kernels replace."""
    return (
        (type(self).loss_function, type(self)._sample_gauss) == _CALLS[kind]
        and mu.dim() == 2
        and mu.shape == log_var.shape
        and mu.dtype == log_var.dtype
        and mu.dtype in checks.FLOATING
    )


def _forward_of(kind: Any) -> Any:
    def forward(self: Any, inputs: Any, **kwargs: Any) -> Any:
        """The model's forward pass, with the sample and the KL in one kernel."""
        x = inputs["data"]
        encoded = self.encoder(x)
        mu, log_var = encoded.embedding, encoded.log_covariance
        if not _fit(kind, self, mu, log_var):
            name = type(self).__name__
            say_once(
                _LOGGER, logging.WARNING, f"{name} is left to pythae: it differs from its base"
            )
            return _FORWARD[kind](self, inputs, **kwargs)
        key, noise = drawn(self.genkern_noise, mu)
        z, kl = vae.rsample_kl(mu, log_var, key=key, noise=noise, reduction="sample")
        x_hat = self.decoder(z)["reconstruction"]
        flat_x_hat, flat_x = x_hat.reshape(len(x), -1), x.reshape(len(x), -1)
        if self.model_config.reconstruction_loss == "mse" and flat_x.dtype == flat_x_hat.dtype:
            reconstruction = _squared_error(flat_x_hat, flat_x)
        elif self.model_config.reconstruction_loss == "mse":
            reconstruction = 0.5 * (flat_x_hat - flat_x).square().sum(-1)
        else:
            reconstruction = F.binary_cross_entropy(flat_x_hat, flat_x, reduction="none").sum(-1)
        beta = self.beta if kind is BetaVAE else 1.0
        return ModelOutput(
            recon_loss=reconstruction.mean(),
            reg_loss=kl.mean(),
            loss=(reconstruction + beta * kl).mean(),
            recon_x=x_hat,
            z=z,
        )

    return forward


def apply(noise: str = "torch") -> Applied:
    """Gives pythae's VAE and BetaVAE genkern's kernels, until `revert()` or the end of a block.

    A subclass with a loss or a sample of its own, and an untested release, are left alone.

    Args:
        noise: "torch" for the numbers that pythae draws, "key" for genkern's.

    Returns:
        A context manager that reverts; it need not be used.

    Raises:
        ValueError: If noise is neither.

    Example:
        >>> import torch
        >>> from genkern.integrations.pythae import apply
        >>> from pythae.models import VAE, VAEConfig
        >>> model = VAE(VAEConfig(input_dim=(1, 4, 4), latent_dim=2))
        >>> with apply():
        ...     output = model({"data": torch.rand(3, 1, 4, 4)})
        >>> output.z.shape
        torch.Size([3, 2])
    """
    check_source(noise)
    if _VERSION not in TESTED:
        known = ", ".join(TESTED)
        say_once(
            _LOGGER,
            logging.WARNING,
            f"everything is left to pythae: {_VERSION} is not a tested release ({known})",
        )
        return _PATCH.apply([])
    changes = [Change(kind, "forward", _forward_of(kind)) for kind in _FORWARD]
    return _PATCH.apply([*changes, *(Change(k, "genkern_noise", noise) for k in _FORWARD)])


def revert() -> None:
    """Gives pythae's classes their own methods back."""
    _PATCH.revert()
