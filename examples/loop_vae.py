"""A VAE of 8 x 8 digits in a plain training loop.

python -m examples.loop_vae [--steps 600]
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from examples.data import BATCH, PIXELS, load_digits
from genkern import vae

_LATENT, _WARMUP = 8, 200


def train(steps: int) -> list[float]:
    """Trains a VAE; returns the loss of each step, in nats an image."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(PIXELS, 128), nn.SiLU(), nn.Linear(128, 2 * _LATENT))
    decoder = nn.Sequential(nn.Linear(_LATENT, 128), nn.SiLU(), nn.Linear(128, PIXELS))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.Adam(parameters, 2e-3)
    images = load_digits().train
    losses = []
    for step in range(steps):
        x = images[torch.randint(len(images), (BATCH,))]
        mu, logvar = encoder(x).chunk(2, dim=1)
        z, kl = vae.rsample_kl(mu, logvar)
        loss = vae.bernoulli_nll(decoder(z), x) + vae.kl_weight(step, warmup=_WARMUP) * kl
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Trains, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    losses = train(parser.parse_args().steps)
    print(f"loss, nats an image: {losses[0]:.2f} at first, {losses[-1]:.2f} at last")


if __name__ == "__main__":
    main()
