"""The VAE family, and drawing noise alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import genkern
from benchmarks.problems import Outputs, Problem, randn
from genkern import vae


def _posterior(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    return randn(shape, generator), 0.5 * randn(shape, generator) - 0.5


def _decoded(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    return 3.0 * randn(shape, generator), randn(shape, generator).sigmoid()


def _decoded_and_posterior(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    # A latent sixteen times smaller than the image a side.
    latent = (shape[0], *(max(n // 16, 1) for n in shape[1:]))
    return *_decoded(shape, generator), *_posterior(latent, generator)


def _moments(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.cat(_posterior(shape, generator), dim=1),)


# ---- plain PyTorch


def _normal(like: Tensor, noise: Tensor | None) -> Outputs:
    if noise is not None:
        return (noise,)
    return (torch.randn(like.shape, dtype=like.dtype, device=like.device),)


def _uniform(like: Tensor, noise: Tensor | None) -> Outputs:
    if noise is not None:
        return (noise,)
    return (torch.rand(like.shape, dtype=like.dtype, device=like.device),)


def _sample(mu: Tensor, logvar: Tensor, noise: Tensor | None) -> Tensor:
    std = torch.exp(0.5 * logvar)
    return torch.addcmul(mu, std, torch.randn_like(mu) if noise is None else noise)


def _rsample(mu: Tensor, logvar: Tensor, noise: Tensor | None) -> Outputs:
    return (_sample(mu, logvar, noise),)


def _kl(mu: Tensor, logvar: Tensor, noise: Tensor | None = None) -> Outputs:
    return (-0.5 / mu.shape[0] * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()),)


def _rsample_kl(mu: Tensor, logvar: Tensor, noise: Tensor | None) -> Outputs:
    return _sample(mu, logvar, noise), *_kl(mu, logvar)


def _bernoulli_nll(logits: Tensor, x: Tensor, noise: Tensor | None = None) -> Outputs:
    nll = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return (nll / logits.shape[0],)


_SIGMA = 0.5


def _gaussian_nll(x_hat: Tensor, x: Tensor, noise: Tensor | None = None) -> Outputs:
    constant = (math.log(_SIGMA) + 0.5 * math.log(2.0 * math.pi)) * x[0].numel()
    squares = F.mse_loss(x_hat, x, reduction="sum")
    return (squares * (0.5 / _SIGMA**2 / x.shape[0]) + constant,)


def _elbo_loss(
    logits: Tensor, x: Tensor, mu: Tensor, logvar: Tensor, noise: Tensor | None = None
) -> Outputs:
    return (_bernoulli_nll(logits, x)[0] + _kl(mu, logvar)[0],)


def _diagonal_gaussian(moments: Tensor, noise: Tensor | None) -> Outputs:
    mu, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30.0, 20.0)
    kl = 0.5 * torch.sum(mu.pow(2) + logvar.exp() - 1.0 - logvar, dim=tuple(range(1, mu.dim())))
    return _sample(mu, logvar, noise), kl


# ---- genkern


def _genkern_diagonal_gaussian(
    moments: Tensor, key: Tensor | None, noise: Tensor | None
) -> Outputs:
    posterior = vae.DiagonalGaussian(moments)
    return posterior.sample(key=key, noise=noise), posterior.kl()


def _genkern_normal(like: Tensor, key: Tensor | None, noise: Tensor | None) -> Outputs:
    key = genkern.random.new_key(device=like.device) if key is None else key
    return (genkern.random.normal(key, *like.shape, dtype=like.dtype),)


def _genkern_uniform(like: Tensor, key: Tensor | None, noise: Tensor | None) -> Outputs:
    key = genkern.random.new_key(device=like.device) if key is None else key
    return (genkern.random.uniform(key, *like.shape, dtype=like.dtype),)


def _like(shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, ...]:
    """Only the shape, dtype and device count."""
    return (torch.empty(1, dtype=torch.float64).expand(*shape),)


NORMAL = Problem("normal", _genkern_normal, _normal, _like, wrt=())
UNIFORM = Problem("uniform", _genkern_uniform, _uniform, _like, wrt=())
RSAMPLE = Problem(
    "rsample",
    lambda mu, logvar, key, noise: (vae.rsample(mu, logvar, key=key, noise=noise),),
    _rsample,
    _posterior,
)
RSAMPLE_KL = Problem(
    "rsample_kl",
    lambda mu, logvar, key, noise: vae.rsample_kl(mu, logvar, key=key, noise=noise),
    _rsample_kl,
    _posterior,
)
KL = Problem("kl", lambda mu, logvar, key, noise: (vae.kl(mu, logvar),), _kl, _posterior)
BERNOULLI_NLL = Problem(
    "bernoulli_nll",
    lambda logits, x, key, noise: (vae.bernoulli_nll(logits, x),),
    _bernoulli_nll,
    _decoded,
    wrt=(0,),
)
GAUSSIAN_NLL = Problem(
    "gaussian_nll",
    lambda x_hat, x, key, noise: (vae.gaussian_nll(x_hat, x, sigma=_SIGMA),),
    _gaussian_nll,
    _decoded,
    wrt=(0,),
)
ELBO_LOSS = Problem(
    "elbo_loss",
    lambda logits, x, mu, logvar, key, noise: (vae.elbo_loss(logits, x, mu, logvar).loss,),
    _elbo_loss,
    _decoded_and_posterior,
    wrt=(0, 2, 3),
)
DIAGONAL_GAUSSIAN = Problem(
    "DiagonalGaussian",
    _genkern_diagonal_gaussian,
    _diagonal_gaussian,
    _moments,
    wrt=(0,),
)
