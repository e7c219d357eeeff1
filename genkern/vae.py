"""Variational autoencoders: reparameterised sampling, Gaussian KL and the likelihoods, fused.

Every function is differentiable to second order, keeps nothing for the backward pass beyond its
inputs and the 16-byte key (the noise is drawn again), computes in float32 (float64 for float64
inputs) with one rounding at the end, and reduces in an order fixed by the shape. Where an input is
NaN the result is NaN; an infinite logvar gives the limit: an infinite KL, and z = mu where sigma
is 0. Mixed dtypes are promoted as torch does. docs/vae.md has the mathematics.
"""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from genkern._arguments import given_noise, noise_source, promoted
from genkern._ops import checks
from genkern._ops import vae as ops
from genkern._ops.elements import BATCHMEAN, batch
from genkern._ops.random import new_words

__all__ = [
    "DiagonalGaussian",
    "Elbo",
    "active_units",
    "bernoulli_nll",
    "elbo_loss",
    "gaussian_nll",
    "kl",
    "kl_weight",
    "rsample",
    "rsample_kl",
]

_NO_CLAMP = (-math.inf, math.inf)

# What a number may be: its bounds and their text.
_FREE_BITS = (0.0, checks.GREATEST, "at least 0 and finite")
# sigma and its reciprocal are normal numbers of the arithmetic, float32 or float64.
_SIGMA = (2.0**-126, 2.0**126, "in [2**-126, 2**126]")
_SIGMA64 = (2.0**-1022, 2.0**1022, "in [2**-1022, 2**1022]")


def _clamp(function: str, logvar_clamp: tuple[float, float] | None) -> tuple[float, float]:
    if logvar_clamp is None:
        return _NO_CLAMP
    low, high = checks.two_numbers(function, "logvar_clamp", logvar_clamp, "(low, high)")
    if not low <= high:
        raise ValueError(f"{function}: logvar_clamp must be (low, high), got {logvar_clamp}")
    return low, high


def _prior(
    function: str, name: str, prior: Tensor | float | None, mu: Tensor
) -> tuple[Tensor | None, float]:
    """A prior's parameter: a tensor, not yet in mu's shape, or a number."""
    if prior is None:
        return None, 0.0
    if isinstance(prior, Tensor):
        checks.floating(function, name, prior)
        checks.same_device(function, name, prior, "mu", mu)
        return prior, 0.0
    if isinstance(prior, numbers.Real) and not isinstance(prior, bool):
        return None, float(prior)
    got = type(prior).__name__
    raise TypeError(f"{function}: {name} must be a tensor or a number, got {got}")


def _expanded(function: str, name: str, prior: Tensor, mu: Tensor) -> Tensor:
    """The tensor in mu's shape: after the promotion, in which 0-d tensors do not count."""
    if prior.shape == mu.shape:
        return prior
    try:
        return prior.expand(mu.shape)
    except RuntimeError:
        raise ValueError(
            f"{function}: {name} must broadcast to mu's shape {tuple(mu.shape)},"
            f" got {tuple(prior.shape)}"
        ) from None


def rsample(
    mu: Tensor,
    logvar: Tensor,
    *,
    key: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    num_samples: int | None = None,
) -> Tensor:
    r"""Draws z from N(mu, exp(logvar)) by reparameterisation.

    .. math:: z = \mu + e^{\frac12 \log\sigma^2} \epsilon, \qquad \epsilon \sim N(0, 1)

    Kingma and Welling, "Auto-Encoding Variational Bayes", arXiv:1312.6114, section 2.4.

    Args:
        mu: Mean, (B, ...).
        logvar: Natural logarithm of the variance, in mu's shape.
        key: uint64 or int64 key, (2,), or (B, 2) for one a sample: a sample's noise then does
            not depend on its batch.
        noise: The noise itself, in z's shape. Differentiable.
        generator: Source of a new key. Give at most one of key, noise and generator; without any,
            a new key comes from the default generator.
        num_samples: K, for K samples of each: z has shape `(K, *mu.shape)`.

    Returns:
        z, in the promoted dtype and mu's memory format (contiguous with num_samples).

    Raises:
        TypeError: If a tensor is not floating point, or the key not uint64 or int64.
        ValueError: If shapes or devices disagree, more than one source of noise is given, or
            num_samples is negative.

    Note:
        The backward pass draws the noise again from the key instead of keeping it. Same key, same
        noise, bit for bit, on every backend. sigma is computed in float32 (float64); noise from a
        key enters unrounded.

    Example:
        >>> import torch, genkern
        >>> mu, logvar = torch.zeros(2, 3), torch.zeros(2, 3)
        >>> genkern.vae.rsample(mu, logvar, key=genkern.random.key(42))
        tensor([[-0.9702,  0.1940, -1.2356],
                [ 1.9239, -0.0732,  0.1391]])
    """
    return _rsample(mu, logvar, key, noise, generator, num_samples, _NO_CLAMP)


def _rsample(
    mu: Tensor,
    logvar: Tensor,
    key: Tensor | None,
    noise: Tensor | None,
    generator: torch.Generator | None,
    num_samples: int | None,
    clamp: tuple[float, float],
) -> Tensor:
    checks.pair("rsample", "mu", mu, "logvar", logvar)
    if num_samples is not None:
        num_samples = checks.integer("rsample", "num_samples", num_samples, 0)
    shape = mu.shape if num_samples is None else (num_samples, *mu.shape)
    key, noise = noise_source("rsample", "mu", mu, shape, key, noise, generator)
    mu, logvar, noise = promoted(mu, logvar, noise)  # type: ignore[assignment]
    return ops.rsample(mu, logvar, key, noise, num_samples, *clamp)


def kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | float | None = None,
    prior_logvar: Tensor | float | None = None,
    *,
    free_bits: float = 0.0,
    logvar_clamp: tuple[float, float] | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    r"""KL divergence of N(mu, exp(logvar)) from a Gaussian prior, in nats.

    .. math::  \mathrm{KL} = \tfrac12 \sum_j \left( (\mu_j - m_j)^2 e^{-\lambda_j}
               + e^{d_j} - 1 - d_j \right), \qquad d_j = \log\sigma_j^2 - \lambda_j

    with the prior N(m, exp(lambda)), N(0, 1) by default: (42.2), and Kingma and Welling,
    arXiv:1312.6114, appendix B.

    Args:
        mu: Mean, (B, ...).
        logvar: Natural logarithm of the variance, in mu's shape.
        prior_mu: The prior's mean, a number or a tensor that broadcasts to mu; 0 when None.
        prior_logvar: The prior's log-variance, likewise. Prior tensors get gradients.
        free_bits: Each coordinate's KL is replaced by max(KL, free_bits) (Kingma et al.,
            arXiv:1606.04934, appendix C.8); its gradient is 0 below.
        logvar_clamp: (low, high) bounds of logvar; the gradient passes at the bounds and is 0
            outside.
        reduction: "none", "sum", "mean", "batchmean" (the sum divided by B) or "sample" (the sum
            over all but dim 0, of shape (B,)).

    Returns:
        The KL, in float32 (float64) when reduced, in the promoted dtype for "none".

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If shapes or devices disagree, or an option is not valid.

    Note:
        Never negative; exp(d) - 1 - d is evaluated by its own series for `|d| < 1/2`, so the
        relative error stays small down to the prior. Deterministic: the same bits for any number
        of threads.

    Example:
        >>> import torch, genkern
        >>> genkern.vae.kl(torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2))
        tensor(1.)
    """
    code = checks.reduction_code("kl", reduction)
    checks.pair("kl", "mu", mu, "logvar", logvar)
    prior_mu, mean = _prior("kl", "prior_mu", prior_mu, mu)
    prior_logvar, log_variance = _prior("kl", "prior_logvar", prior_logvar, mu)
    options = (
        checks.number("kl", "free_bits", free_bits, *_FREE_BITS),
        *_clamp("kl", logvar_clamp),
        code,
    )
    mu, logvar, prior_mu, prior_logvar = promoted(mu, logvar, prior_mu, prior_logvar)  # type: ignore[assignment]
    if prior_mu is not None:
        prior_mu = _expanded("kl", "prior_mu", prior_mu, mu)
    if prior_logvar is not None:
        prior_logvar = _expanded("kl", "prior_logvar", prior_logvar, mu)
    return ops.kl(mu, logvar, prior_mu, prior_logvar, mean, log_variance, *options)


def rsample_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | float | None = None,
    prior_logvar: Tensor | float | None = None,
    *,
    key: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    free_bits: float = 0.0,
    logvar_clamp: tuple[float, float] | None = None,
    reduction: str = "batchmean",
) -> tuple[Tensor, Tensor]:
    r"""Draws z from N(mu, exp(logvar)) and measures its KL from the prior, in one pass.

    .. math::  z = \mu + e^{\frac12 \log\sigma^2} \epsilon, \qquad
               \mathrm{KL} = \mathrm{KL}(N(\mu, \sigma^2) \,\|\, N(m, e^\lambda))

    Kingma and Welling, arXiv:1312.6114, equation 10 and appendix B; (42.2). The two results equal
    those of :func:`rsample` and :func:`kl`.

    Args:
        mu: Mean, (B, ...).
        logvar: Natural logarithm of the variance, in mu's shape.
        prior_mu: The prior's mean, a number or a tensor that broadcasts to mu; 0 when None.
        prior_logvar: The prior's log-variance, likewise.
        key: uint64 or int64 key, (2,), or (B, 2) for one a sample.
        noise: The noise itself, in mu's shape.
        generator: Source of a new key. Give at most one of key, noise and generator.
        free_bits: Least KL of a coordinate, as in :func:`kl`.
        logvar_clamp: (low, high) bounds of logvar, for both results.
        reduction: Of the KL, as in :func:`kl`.

    Returns:
        (z, kl): z in the promoted dtype and mu's memory format; kl in nats.

    Raises:
        TypeError: If a tensor is not floating point, or the key not uint64 or int64.
        ValueError: If shapes or devices disagree, more than one source of noise is given, or an
            option is not valid.

    Note:
        Numerics, determinism and memory as in :func:`rsample` and :func:`kl`.

    Example:
        >>> import torch, genkern
        >>> mu, logvar = torch.zeros(2, 3), torch.zeros(2, 3)
        >>> z, kl = genkern.vae.rsample_kl(mu, logvar, key=genkern.random.key(42))
        >>> z.shape, kl
        (torch.Size([2, 3]), tensor(0.))
    """
    code = checks.reduction_code("rsample_kl", reduction)
    checks.pair("rsample_kl", "mu", mu, "logvar", logvar)
    prior_mu, mean = _prior("rsample_kl", "prior_mu", prior_mu, mu)
    prior_logvar, log_variance = _prior("rsample_kl", "prior_logvar", prior_logvar, mu)
    options = (
        checks.number("rsample_kl", "free_bits", free_bits, *_FREE_BITS),
        *_clamp("rsample_kl", logvar_clamp),
        code,
    )
    key, noise = given_noise("rsample_kl", "mu", mu, mu.shape, key, noise, generator)
    mu, logvar, prior_mu, prior_logvar, noise = promoted(  # type: ignore[assignment]
        mu, logvar, prior_mu, prior_logvar, noise
    )
    if prior_mu is not None:
        prior_mu = _expanded("rsample_kl", "prior_mu", prior_mu, mu)
    if prior_logvar is not None:
        prior_logvar = _expanded("rsample_kl", "prior_logvar", prior_logvar, mu)
    if key is None and noise is None:
        key = new_words(None, mu.device, generator)
    return ops.rsample_kl(
        mu, logvar, prior_mu, prior_logvar, key, noise, mean, log_variance, *options
    )


def bernoulli_nll(logits: Tensor, x: Tensor, *, reduction: str = "batchmean") -> Tensor:
    r"""Negative log-likelihood of a Bernoulli decoder, from its logits, in nats.

    .. math::  -\log p(x) = \max(a, 0) - a x + \log(1 + e^{-|a|})

    Kingma and Welling, arXiv:1312.6114, appendix C.1, with y = sigmoid(a).

    Args:
        logits: a, (B, ...).
        x: Data in logits' shape, usually in [0, 1]. Differentiable.
        reduction: As in :func:`kl`.

    Returns:
        The negative log-likelihood, in float32 (float64) when reduced.

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If shapes or devices disagree, or the reduction is unknown.

    Note:
        Does not overflow at any finite logit. Deterministic as :func:`kl` is.

    Example:
        >>> import torch, genkern
        >>> genkern.vae.bernoulli_nll(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
        tensor(1.3863)
    """
    code = checks.reduction_code("bernoulli_nll", reduction)
    checks.pair("bernoulli_nll", "logits", logits, "x", x)
    return ops.bernoulli_nll(*promoted(logits, x), code)


def gaussian_nll(
    x_hat: Tensor, x: Tensor, *, sigma: float = 1.0, reduction: str = "batchmean"
) -> Tensor:
    r"""Negative log-density of a Gaussian decoder of fixed scale, in nats, constants included.

    .. math::  -\log p(x) = \frac{(x - \hat x)^2}{2 \sigma^2} + \log\sigma + \tfrac12 \log 2\pi

    Kingma and Welling, arXiv:1312.6114, appendix C.2, with a fixed variance.

    Args:
        x_hat: The decoder's mean, (B, ...).
        x: Data in x_hat's shape. Differentiable.
        sigma: The decoder's standard deviation, in [2^-126, 2^126] (float64: [2^-1022, 2^1022]):
            where it and its reciprocal are normal numbers of the arithmetic.
        reduction: As in :func:`kl`.

    Returns:
        The negative log-density, in float32 (float64) when reduced.

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If shapes or devices disagree, sigma is out of range, or the reduction is
            unknown.

    Note:
        Deterministic as :func:`kl` is.

    Example:
        >>> import torch, genkern
        >>> genkern.vae.gaussian_nll(torch.zeros(1, 2), torch.ones(1, 2))
        tensor(2.8379)
    """
    code = checks.reduction_code("gaussian_nll", reduction)
    checks.pair("gaussian_nll", "x_hat", x_hat, "x", x)
    x_hat, x = promoted(x_hat, x)  # type: ignore[assignment]
    bounds = _SIGMA64 if x_hat.dtype == torch.float64 else _SIGMA
    sigma = checks.number("gaussian_nll", "sigma", sigma, *bounds)
    return ops.gaussian_nll(x_hat, x, None, sigma, *_NO_CLAMP, code)


class Elbo(NamedTuple):
    """The terms of a VAE's loss, means over the batch, in nats."""

    loss: Tensor
    nll: Tensor
    kl: Tensor


def elbo_loss(
    x_hat: Tensor,
    x: Tensor,
    mu: Tensor,
    logvar: Tensor,
    *,
    likelihood: str = "bernoulli",
    sigma: float = 1.0,
    beta: float = 1.0,
    free_bits: float = 0.0,
) -> Elbo:
    r"""The negative evidence lower bound, with the beta of the beta-VAE.

    .. math::  L = \frac1B \sum_b \left( -\log p(x_b | z_b) + \beta \, \mathrm{KL}_b \right)

    (42.1) and (42.3); Kingma and Welling, arXiv:1312.6114, equation 3; Higgins et al.,
    "beta-VAE", ICLR 2017, equation 4.

    Args:
        x_hat: The decoder's output, (B, ...): logits for "bernoulli", means for "gaussian".
        x: Data in x_hat's shape.
        mu: Posterior mean, (B, ...), with the B of x_hat.
        logvar: Posterior log-variance, in mu's shape.
        likelihood: "bernoulli" or "gaussian".
        sigma: Standard deviation of the Gaussian decoder, as in :func:`gaussian_nll`.
        beta: Weight of the KL; see :func:`kl_weight` for annealing.
        free_bits: Least KL of a coordinate, as in :func:`kl`.

    Returns:
        Elbo(loss, nll, kl), each a scalar mean over the batch.

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If shapes or devices disagree, or an option is not valid.

    Note:
        Numerics and determinism as in :func:`kl` and :func:`bernoulli_nll`.

    Example:
        >>> import torch, genkern
        >>> x, mu = torch.zeros(1, 2), torch.ones(1, 2)
        >>> genkern.vae.elbo_loss(x, x, mu, torch.zeros(1, 2), beta=0.5)
        Elbo(loss=tensor(1.8863), nll=tensor(1.3863), kl=tensor(1.))
    """
    checks.one_of("elbo_loss", "likelihood", likelihood, ("bernoulli", "gaussian"))
    checks.pair("elbo_loss", "x_hat", x_hat, "x", x)
    checks.pair("elbo_loss", "mu", mu, "logvar", logvar)
    checks.same_device("elbo_loss", "x_hat", x_hat, "mu", mu)
    if batch(x_hat) != batch(mu):
        raise ValueError(
            "elbo_loss: x_hat and mu must have one batch size,"
            f" got shapes {tuple(x_hat.shape)} and {tuple(mu.shape)}"
        )
    x_hat, x = promoted(x_hat, x)  # type: ignore[assignment]
    bounds = _SIGMA64 if x_hat.dtype == torch.float64 else _SIGMA
    sigma = checks.number("elbo_loss", "sigma", sigma, *bounds)
    free_bits = checks.number("elbo_loss", "free_bits", free_bits, *_FREE_BITS)
    if not isinstance(beta, Tensor):
        beta = checks.number("elbo_loss", "beta", beta)
    if likelihood == "bernoulli":
        nll = ops.bernoulli_nll(x_hat, x, BATCHMEAN)
    else:
        nll = ops.gaussian_nll(x_hat, x, None, sigma, *_NO_CLAMP, BATCHMEAN)
    mu, logvar = promoted(mu, logvar)  # type: ignore[assignment]
    divergence = ops.kl(mu, logvar, None, None, 0.0, 0.0, free_bits, *_NO_CLAMP, BATCHMEAN)
    return Elbo(nll + beta * divergence, nll, divergence)


def kl_weight(step: float, *, warmup: float, kind: str = "linear", cycles: int = 1) -> float:
    """The KL's weight at a step of an annealing schedule: it rises from 0 to 1.

    With p = step / warmup: "linear" min(1, p); "cosine" (1 - cos(pi min(1, p))) / 2; "sigmoid"
    1 / (1 + exp(-12 (p - 1/2))) up to warmup, then 1; "cyclical" (Fu et al., "Cyclical annealing
    schedule", arXiv:1903.10145) linear over the first half of each of `cycles` periods of length
    warmup / cycles, then 1.

    Args:
        step: Step of training, counted from 0.
        warmup: Steps until the weight stays 1.
        kind: "linear", "cosine", "sigmoid" or "cyclical".
        cycles: Number of periods, for "cyclical".

    Returns:
        The weight, in [0, 1].

    Raises:
        TypeError: If step or warmup is not a number, or cycles not an integer.
        ValueError: If an option is not valid.

    Example:
        >>> import genkern
        >>> [genkern.vae.kl_weight(step, warmup=100) for step in (0, 50, 200)]
        [0.0, 0.5, 1.0]
    """
    checks.one_of("kl_weight", "kind", kind, ("linear", "cosine", "sigmoid", "cyclical"))
    checks.number("kl_weight", "warmup", warmup, checks.LEAST, math.inf, "positive")
    checks.number("kl_weight", "step", step, 0, math.inf, "at least 0")
    if cycles != 1 and (checks.integer("kl_weight", "cycles", cycles) < 1 or kind != "cyclical"):
        raise ValueError(
            f"kl_weight: cycles must be at least 1, and 1 unless kind is cyclical,"
            f" got {cycles} with {kind}"
        )
    if step >= warmup:
        return 1.0
    progress = step / warmup
    if kind == "cosine":
        return (1.0 - math.cos(math.pi * progress)) / 2.0
    if kind == "sigmoid":
        return 1.0 / (1.0 + math.exp(-12.0 * (progress - 0.5)))
    if kind == "cyclical":
        return min(1.0, 2.0 * ((progress * cycles) % 1.0))
    return progress


def active_units(mu: Tensor, *, threshold: float = 0.01) -> Tensor:
    """Tells which latent coordinates carry information: a test for posterior collapse.

    A coordinate is active if the variance of its posterior mean over the data exceeds the
    threshold: Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders",
    arXiv:1509.00519, section 5.2.

    Args:
        mu: Posterior means of a batch (better, of a data set), (B, ...), B at least 2.
        threshold: Least variance of an active coordinate.

    Returns:
        bool, of shape mu.shape[1:].

    Raises:
        TypeError: If mu is not floating point, or threshold not a number.
        ValueError: If mu has fewer than two samples, or threshold is not finite.

    Example:
        >>> import torch, genkern
        >>> mu = torch.tensor([[0.0, 1.0], [0.01, -1.0], [-0.01, 0.5]])
        >>> genkern.vae.active_units(mu)
        tensor([False,  True])
    """
    checks.floating("active_units", "mu", mu)
    if mu.dim() == 0 or mu.shape[0] < 2:
        raise ValueError(
            f"active_units: mu must have at least 2 samples in dim 0, got {tuple(mu.shape)}"
        )
    threshold = checks.number("active_units", "threshold", threshold)
    wide = mu if mu.dtype == torch.float64 else mu.float()
    return wide.var(dim=0) > threshold


class DiagonalGaussian:
    """A Gaussian with diagonal covariance, from an encoder's output: mean and logvar on dim 1.

    The two halves are read in place, whatever the number of dimensions: (B, 2C), (B, 2C, L),
    (B, 2C, H, W), (B, 2C, D, H, W). The sample, KL and density of Kingma and Welling,
    arXiv:1312.6114, appendices B and C.2.

    Args:
        moments: (B, 2C, ...), the means and then the log-variances.
        logvar_clamp: (low, high) bounds of the log-variance, or None.

    Raises:
        TypeError: If moments is not floating point.
        ValueError: If dim 1 is missing or odd, or the bounds are not ordered.

    Example:
        >>> import torch, genkern
        >>> posterior = genkern.vae.DiagonalGaussian(torch.zeros(2, 8, 4, 4))
        >>> posterior.sample(key=genkern.random.key(0)).shape, posterior.kl()
        (torch.Size([2, 4, 4, 4]), tensor([0., 0.]))
    """

    def __init__(
        self, moments: Tensor, *, logvar_clamp: tuple[float, float] | None = (-30.0, 20.0)
    ) -> None:
        checks.floating("DiagonalGaussian", "moments", moments)
        if moments.dim() < 2 or moments.shape[1] % 2:
            raise ValueError(
                "DiagonalGaussian: moments must have shape (B, 2C, ...),"
                f" got {tuple(moments.shape)}"
            )
        self.mean, self._logvar = moments.chunk(2, dim=1)
        self._clamp = _clamp("DiagonalGaussian", logvar_clamp)

    @property
    def logvar(self) -> Tensor:
        """The clamped log-variance."""
        return self._logvar if self._clamp == _NO_CLAMP else self._logvar.clamp(*self._clamp)

    def sample(
        self,
        *,
        key: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draws a differentiable sample, (B, C, ...); the arguments are those of `rsample`."""
        return _rsample(self.mean, self._logvar, key, noise, generator, None, self._clamp)

    def mode(self) -> Tensor:
        """The most likely value: the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussian | None = None, reduction: str = "sample") -> Tensor:
        """KL divergence in nats from `other`, or from N(0, 1); by default one a sample, (B,)."""
        # Other packages' posteriors have a mean and a logvar too.
        prior = [getattr(other, name, None) for name in ("mean", "logvar")]
        if other is not None and not all(isinstance(x, Tensor) for x in prior):
            raise TypeError(f"kl: other must be a DiagonalGaussian, got {type(other).__name__}")
        clamp = None if self._clamp == _NO_CLAMP else self._clamp
        return kl(self.mean, self._logvar, *prior, logvar_clamp=clamp, reduction=reduction)

    def nll(self, x: Tensor, reduction: str = "sample") -> Tensor:
        """Negative log-density of x in nats, constants included; by default one a sample, (B,)."""
        code = checks.reduction_code("nll", reduction)
        checks.pair("nll", "x", x, "mean", self.mean)
        tensors = promoted(self.mean, x, self._logvar)
        return ops.gaussian_nll(*tensors, 1.0, *self._clamp, code)
