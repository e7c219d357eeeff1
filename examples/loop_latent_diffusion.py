"""Latent diffusion: the training step of a denoiser on an autoencoder's posterior, in a loop.

    python -m examples.loop_latent_diffusion [--steps 100]

The autoencoder stands for a trained one, and is not changed. The denoiser's noise is a key of 16
bytes until the loss, and the posterior is sampled from the two halves of the moments in place.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from examples.data import BATCH, SIDE, load_digits
from genkern import diffusion, random, vae

_CHANNELS, _T = 4, 1000
_SCHEDULE = diffusion.NoiseSchedule.scaled_linear(_T, 0.00085, 0.012)


class Denoiser(nn.Module):
    """Predicts the noise of latents, (B, 4, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, 64))
        self.first = nn.Conv2d(_CHANNELS, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.last = nn.Conv2d(64, _CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise, from the noised latents and the steps."""
        time = self.time(t.float().unsqueeze(1) / _T)[:, :, None, None]
        h = nn.functional.silu(self.first(x) + time)
        return self.last(nn.functional.silu(self.second(h)))


def step(
    encoder: nn.Module, denoiser: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor
) -> Tensor:
    """One training step: Rombach et al., arXiv:2112.10752, (2)."""
    with torch.no_grad():
        latents = vae.DiagonalGaussian(encoder(images)).sample()
    t = torch.randint(_T, (len(images),))
    key = random.new_key()
    x_t = diffusion.q_sample(latents, t, _SCHEDULE, key=key)
    loss = diffusion.noise_loss(denoiser(x_t, t), latents, t, _SCHEDULE, key=key)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.detach()


def train(steps: int) -> list[float]:
    """Trains a denoiser; returns the loss of each step."""
    torch.manual_seed(0)
    encoder = nn.Conv2d(1, 2 * _CHANNELS, 2, stride=2)
    denoiser = Denoiser()
    optimiser = torch.optim.Adam(denoiser.parameters(), 1e-3)
    images = load_digits().train.reshape(-1, 1, SIDE, SIDE)
    return [
        step(encoder, denoiser, optimiser, images[torch.randint(len(images), (BATCH,))]).item()
        for _ in range(steps)
    ]


def main() -> None:
    """Trains, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100)
    losses = train(parser.parse_args().steps)
    print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")


if __name__ == "__main__":
    main()
