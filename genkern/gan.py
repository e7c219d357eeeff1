"""Generative adversarial networks: losses, gradient penalties and what goes with them, fused.

Losses take logits and do not overflow at any finite one. Every function but `clip_weights_` is
differentiable to second order (penalties by a kernel of their own), keeps nothing for the backward
pass beyond its inputs, the key and, for losses, the gradients themselves, computes in float32
(float64 for float64 inputs) with one rounding at the end, and reduces in an order fixed by the
shape. Mixed dtypes are promoted as torch does. Weights of the terms are the caller's. docs/gan.md
has the mathematics.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from genkern._arguments import noise_source, promoted
from genkern._ops import checks
from genkern._ops import gan as ops
from genkern._ops.elements import BATCHMEAN, MEAN, SUM
from genkern._ops.op import is_plain_cpu

__all__ = [
    "clip_weights_",
    "discriminator_loss",
    "generator_loss",
    "gradient_penalty",
    "interpolate",
    "js_divergence",
    "optimal_discriminator",
    "r1_penalty",
]

# The kinds whose labels can be smoothed.
_SMOOTHED = ("minimax", "saturating", "non_saturating", "least_squares")
# The kinds whose generator's loss is linear in the logits.
_LINEAR = ("hinge", "wasserstein")
# Longer products are split among the threads, by which their last bits would depend on them
# (OpenBLAS: from 10000 numbers on).
_SHORT = 4096
_BELOW_1 = math.nextafter(1.0, 0.0)
# From here on a CPU's second pass over a parameter costs more than its share of a joint call saves.
_LARGE = 8192


def _logits(
    function: str, real: Tensor, fake: Tensor, kind: str, reduction: int, reduction_word: str
) -> None:
    checks.floating(function, "real_logits", real)
    checks.floating(function, "fake_logits", fake)
    checks.same_device(function, "real_logits", real, "fake_logits", fake)
    if real.shape == fake.shape:
        return
    if kind == "relativistic" or reduction not in (MEAN, SUM, BATCHMEAN):
        what = f"kind={kind!r}" if kind == "relativistic" else f"reduction={reduction_word!r}"
        raise ValueError(
            f"{function}: real_logits and fake_logits must have one shape with {what},"
            f" got {tuple(real.shape)} and {tuple(fake.shape)}"
        )


def _is_short(x: Tensor) -> bool:
    """Whether the mean of x is all overhead.

    Then it is one operator of PyTorch's, whose gradient is C++: less than any that Python defines,
    and than the mean and the sign.
    """
    return is_plain_cpu(x) and 0 < x.numel() <= _SHORT and x.dtype in (torch.float32, torch.float64)


def discriminator_loss(
    real_logits: Tensor,
    fake_logits: Tensor,
    *,
    kind: str = "minimax",
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    r"""The loss of a discriminator, or of a Wasserstein critic, from its logits.

    With r and f the logits of real and generated data, sp the softplus and s the smoothing:

    .. math::
        \text{minimax, saturating, non\_saturating} \quad & (1 - s)\,sp(-r) + s\,sp(r) + sp(f) \\
        \text{hinge} \quad & \max(1 - r, 0) + \max(1 + f, 0) \\
        \text{wasserstein} \quad & f - r \\
        \text{least\_squares} \quad & \tfrac12 (r - 1 + s)^2 + \tfrac12 f^2 \\
        \text{relativistic} \quad & sp(-(r - f))

    Goodfellow et al., arXiv:1406.2661, (1); Lim and Ye, arXiv:1705.02894; Arjovsky et al.,
    arXiv:1701.07875, and (42.5); Mao et al., arXiv:1611.04076; Jolicoeur-Martineau,
    arXiv:1807.00734. Smoothing of the real labels alone: Salimans et al., arXiv:1606.03498, 3.4.

    Args:
        real_logits: r, (B, ...).
        fake_logits: f. In another shape each term has its own mean (or sum); "relativistic", and
            the reductions "none" and "sample", need one shape.
        kind: One of the words above. The first three differ in the generator's loss only.
        label_smoothing: s, in [0, 1); for the first three and "least_squares".
        reduction: "none", "sum", "mean", "batchmean" (the sum divided by B) or "sample" (the sum
            over all but dim 0, of shape (B,)).

    Returns:
        The loss to minimise, in float32 (float64) when reduced, in the promoted dtype for "none".

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If shapes or devices disagree, or an option is not valid.

    Note:
        Does not overflow at any finite logit. Deterministic: the same bits for any number of
        threads.

    Example:
        >>> import torch, genkern
        >>> real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [0.5]])
        >>> genkern.gan.discriminator_loss(real, fake)
        tensor(1.0537)
        >>> genkern.gan.discriminator_loss(real, fake, kind="hinge", reduction="sample")
        tensor([0.0000, 2.5000])
    """
    function = "discriminator_loss"
    code = checks.reduction_code(function, reduction)
    checks.one_of(function, "kind", kind, ops.KINDS)
    _logits(function, real_logits, fake_logits, kind, code, reduction)
    if label_smoothing != 0.0:
        label_smoothing = checks.number(
            function, "label_smoothing", label_smoothing, 0.0, _BELOW_1, "in [0, 1)"
        )
        if kind not in _SMOOTHED:
            raise ValueError(
                f"{function}: label_smoothing must be 0 with kind={kind!r}, got {label_smoothing}"
            )
    real, fake = promoted(real_logits, fake_logits)
    return ops.discriminator_loss(real, fake, ops.KINDS[kind], float(label_smoothing), code)


def generator_loss(
    fake_logits: Tensor,
    real_logits: Tensor | None = None,
    *,
    kind: str = "non_saturating",
    reduction: str = "mean",
) -> Tensor:
    r"""The loss of a generator from the logits of what it made.

    With f and r the logits of generated and real data and sp the softplus:

    .. math::
        \text{minimax, saturating} \quad & -sp(f) = \log(1 - D) \\
        \text{non\_saturating} \quad & sp(-f) = -\log D \\
        \text{hinge, wasserstein} \quad & -f \\
        \text{least\_squares} \quad & \tfrac12 (f - 1)^2 \\
        \text{relativistic} \quad & sp(-(f - r))

    Goodfellow et al., arXiv:1406.2661, (1) and section 3; the other sources as in
    :func:`discriminator_loss`.

    Args:
        fake_logits: f, (B, ...).
        real_logits: r, in f's shape, for "relativistic"; the other kinds do not look at it.
        kind: One of the words above.
        reduction: As in :func:`discriminator_loss`.

    Returns:
        The loss to minimise, in float32 (float64) when reduced, in the promoted dtype for "none".

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If shapes or devices disagree, "relativistic" has no real_logits, or an option
            is not valid.

    Note:
        Numerics and determinism as in :func:`discriminator_loss`.

    Example:
        >>> import torch, genkern
        >>> fake = torch.tensor([[-8.0]], requires_grad=True)
        >>> for kind in ("saturating", "non_saturating"):
        ...     loss = genkern.gan.generator_loss(fake, kind=kind)
        ...     print(f"{torch.autograd.grad(loss, fake)[0].item():.4f}")
        -0.0003
        -0.9997
    """
    if kind in _LINEAR and reduction == "mean" and _is_short(fake_logits):
        n = fake_logits.numel()
        return torch.dot(fake_logits.reshape(n), fake_logits.new_full((n,), -1.0 / n))
    function = "generator_loss"
    code = checks.reduction_code(function, reduction)
    checks.one_of(function, "kind", kind, ops.KINDS)
    if kind != "relativistic":
        checks.floating(function, "fake_logits", fake_logits)
        return ops.generator_loss(fake_logits, None, ops.KINDS[kind], code)
    if real_logits is None:
        raise ValueError(f"{function}: kind='relativistic' needs real_logits, got None")
    checks.pair(function, "fake_logits", fake_logits, "real_logits", real_logits)
    fake, real = promoted(fake_logits, real_logits)
    return ops.generator_loss(fake, real, ops.RELATIVISTIC, code)


def _penalty(function: str, grads: Tensor, center: float, weight: float, reduction: str) -> Tensor:
    code = checks.reduction_code(function, reduction)
    checks.floating(function, "grads", grads)
    if grads.dim() == 0:
        raise ValueError(f"{function}: grads must have a batch dimension, (B, ...), got ()")
    return ops.gradient_penalty(grads, center, weight, code)


def gradient_penalty(grads: Tensor, *, center: float = 1.0, reduction: str = "mean") -> Tensor:
    r"""Penalises the norm of a critic's gradient for being away from `center`, sample by sample.

    .. math::  \frac1B \sum_b \left( \|g_b\|_2 - c \right)^2

    Gulrajani et al., "Improved training of Wasserstein GANs", arXiv:1704.00028, (3).

    Args:
        grads: g, (B, ...): the gradients of the critic's outputs with respect to its inputs, from
            `torch.autograd.grad(..., create_graph=True)`. The norm is over all but dim 0.
        center: c, at least 0.
        reduction: Of the samples' penalties: "mean" or "batchmean", "sum", and "none" or "sample"
            for one a sample, (B,).

    Returns:
        The penalty, in float32 (float64); in grads' dtype for "none".

    Raises:
        TypeError: If grads is not floating point.
        ValueError: If grads has no batch dimension, or an option is not valid.

    Note:
        Differentiable to any order, with a kernel of its own for the second derivative. At g = 0,
        where the norm has none, the derivatives are 0. The norm is summed in float64: no
        float16 or float32 gradient overflows or vanishes. Deterministic as
        :func:`discriminator_loss` is.

    Example:
        >>> import torch, genkern
        >>> genkern.gan.gradient_penalty(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), reduction="sample")
        tensor([16.,  0.])
    """
    center = checks.number(
        "gradient_penalty", "center", center, 0.0, expected="at least 0 and finite"
    )
    return _penalty("gradient_penalty", grads, center, 1.0, reduction)


def r1_penalty(grads: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""Half the squared norm of a discriminator's gradient on real data, sample by sample.

    .. math::  \frac1B \sum_b \tfrac12 \|g_b\|_2^2

    Mescheder et al., "Which training methods for GANs do actually converge?", arXiv:1801.04406,
    (9), without its factor gamma. On generated data it is R2, (10).

    Args:
        grads: g, (B, ...), as in :func:`gradient_penalty`.
        reduction: As in :func:`gradient_penalty`.

    Returns:
        The penalty, in float32 (float64); in grads' dtype for "none".

    Raises:
        TypeError: If grads is not floating point.
        ValueError: If grads has no batch dimension, or the reduction is unknown.

    Note:
        As :func:`gradient_penalty`, and smooth at g = 0. Where it is added every k steps only,
        multiply it by k: Karras et al., arXiv:1912.04958, appendix B.

    Example:
        >>> import torch, genkern
        >>> genkern.gan.r1_penalty(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor(6.5000)
    """
    return _penalty("r1_penalty", grads, 0.0, 0.5, reduction)


def interpolate(
    real: Tensor,
    fake: Tensor,
    *,
    key: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Points on the lines between real and generated samples, where the critic's slope is judged.

    .. math::  \hat x_b = w_b x_b + (1 - w_b) \tilde x_b, \qquad w_b \sim U[0, 1)

    Gulrajani et al., arXiv:1704.00028, algorithm 1.

    Args:
        real: x, (B, ...).
        fake: The generated samples, in real's shape.
        key: uint64 or int64 key, (2,), or (B, 2) for one a sample: a sample's weight then does not
            depend on its batch.
        noise: The weights themselves, (B,). Differentiable.
        generator: Source of a new key. Give at most one of key, noise and generator; without any,
            a new key comes from the default generator.

    Returns:
        The points, in the promoted dtype and real's memory format.

    Raises:
        TypeError: If a tensor is not floating point, or the key not uint64 or int64.
        ValueError: If shapes or devices disagree, there is no batch dimension, or more than one
            source of noise is given.

    Note:
        The weights are those of `genkern.random.uniform(key, B)`, unrounded; they are drawn again
        for the backward pass.

    Example:
        >>> import torch, genkern
        >>> real, fake = torch.ones(3, 1), torch.zeros(3, 1)
        >>> genkern.gan.interpolate(real, fake, key=genkern.random.key(42)).flatten()
        tensor([0.9177, 0.9581, 0.7473])
    """
    checks.pair("interpolate", "real", real, "fake", fake)
    if real.dim() == 0:
        raise ValueError("interpolate: real must have a batch dimension, (B, ...), got ()")
    key, noise = noise_source("interpolate", "real", real, real.shape[:1], key, noise, generator)
    real, fake, noise = promoted(real, fake, noise)  # type: ignore[assignment]
    return ops.interpolate(real, fake, key, noise)


def optimal_discriminator(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""The best discriminator between two known densities.

    .. math::  D^*(x) = \frac{p(x)}{p(x) + q(x)} = \frac1{1 + e^{\log q(x) - \log p(x)}}

    Goodfellow et al., arXiv:1406.2661, proposition 1.

    Args:
        log_p: Natural logarithm of the data's density at the points.
        log_q: That of the generator's, in log_p's shape.

    Returns:
        The probability that a point is real, in the promoted dtype; NaN where both densities are 0.

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If shapes or devices disagree.

    Example:
        >>> import torch, genkern
        >>> log_p, log_q = torch.tensor([-1000.0, 0.0]), torch.tensor([-1000.0, 3.0])
        >>> genkern.gan.optimal_discriminator(log_p, log_q)
        tensor([0.5000, 0.0474])
    """
    checks.pair("optimal_discriminator", "log_p", log_p, "log_q", log_q)
    return ops.optimal_discriminator(*promoted(log_p, log_q))


def js_divergence(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    r"""Estimates the Jensen-Shannon divergence of data and generator from a discriminator's logits.

    .. math::  \log 2 - \tfrac12 L \;\le\; \mathrm{JS}(p_{data} \,\|\, p_g)

    with L the minimax loss of :func:`discriminator_loss`: Goodfellow et al., arXiv:1406.2661,
    theorem 1; (42.4). The expected value is a lower bound, reached by the optimal discriminator. On
    the data that a discriminator was trained on it may be too large.

    Args:
        real_logits: Logits of real data, (B, ...).
        fake_logits: Logits of generated data, in any shape.

    Returns:
        The estimate in nats, at most log 2; in float32 (float64).

    Raises:
        TypeError: If a tensor is not floating point.
        ValueError: If devices disagree.

    Example:
        >>> import torch, genkern
        >>> genkern.gan.js_divergence(torch.full((4, 1), 9.0), torch.full((4, 1), -9.0))
        tensor(0.6930)
    """
    _logits("js_divergence", real_logits, fake_logits, "minimax", MEAN, "mean")
    real, fake = promoted(real_logits, fake_logits)
    loss = ops.discriminator_loss(real, fake, ops.KINDS["minimax"], 0.0, MEAN)
    return math.log(2.0) - 0.5 * loss


def clip_weights_(params: Tensor | Iterable[Tensor], bound: float) -> None:
    r"""Clips parameters to [-bound, bound] in place: the Lipschitz constraint of the first critic.

    Arjovsky et al., "Wasserstein GAN", arXiv:1701.07875, algorithm 1. All parameters of a device
    and dtype are clipped by two multi-tensor calls of PyTorch, one a bound; on a GPU each is a few
    kernels, however many parameters there are. On CPUs, where these calls loop over the parameters,
    the large ones are clipped one by one instead, in one pass over memory and not two.

    Args:
        params: Tensors of any shapes, dtypes and devices, such as `critic.parameters()`.
        bound: The largest magnitude, positive and finite.

    Raises:
        TypeError: If a parameter is not a floating point tensor.
        ValueError: If the bound is not positive and finite, or a parameter is expanded or overlaps
            itself, so that several elements share their memory. No parameter is changed then.

    Note:
        Not recorded by autograd. The bound is rounded to the dtype; NaN stays NaN.

    Example:
        >>> import torch, genkern
        >>> critic = torch.nn.Linear(3, 1)
        >>> genkern.gan.clip_weights_(critic.parameters(), 0.01)
        >>> all(p.abs().max() <= 0.01 for p in critic.parameters())
        True
    """
    bound = checks.number(
        "clip_weights_", "bound", bound, checks.LEAST, expected="positive and finite"
    )
    large: list[Tensor] = []
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for i, x in enumerate((params,) if isinstance(params, Tensor) else params):
        name = f"params[{i}]"
        checks.floating("clip_weights_", name, x)
        checks.own_memory("clip_weights_", name, x)
        # Detached, not under no_grad: torch.export cannot load a no_grad region without a result.
        if x.is_cpu and x.numel() > _LARGE:
            large.append(x.detach())
        else:
            groups.setdefault((x.device, x.dtype), []).append(x.detach())
    for tensors in groups.values():
        torch._foreach_clamp_min_(tensors, -bound)
        torch._foreach_clamp_max_(tensors, bound)
    for x in large:
        x.clamp_(-bound, bound)
