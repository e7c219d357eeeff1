"""A WGAN-GP on a ring of Gaussians, in a plain loop or with PyTorch Lightning.

    python -m examples.loop_wgan_gp [--steps 200] [--lightning]

The steps are those of `examples.gan_steps`; Lightning needs nothing but to be told that the
optimisers are stepped by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from examples.gan_ring import coverage, ring
from examples.gan_steps import generator_step, wgan_gp_step

_LATENT, _BATCH, _CRITIC_STEPS = 8, 128, 3


def _mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 64),
        nn.LeakyReLU(0.2),
        nn.Linear(64, 64),
        nn.LeakyReLU(0.2),
        nn.Linear(64, outputs),
    )


def _networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return _mlp(_LATENT, 2), _mlp(2, 1)


def _optimisers(*networks: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(n.parameters(), 1e-3, betas=(0.5, 0.9)) for n in networks]


def _step(generator: Any, critic: Any, optimisers: Any, batches: Iterator[Tensor]) -> list[float]:
    """Some steps of the critic, and one of the generator; their losses."""
    g_optimiser, c_optimiser = optimisers
    for real in batches:
        fake = generator(torch.randn(len(real), _LATENT)).detach()
        c_loss = wgan_gp_step(critic, c_optimiser, real, fake)
    z = torch.randn(_BATCH, _LATENT)
    g_loss = generator_step(generator, critic, g_optimiser, z, kind="wasserstein")
    return [c_loss.item(), g_loss.item()]


def _batches() -> Iterator[Tensor]:
    return (ring(_BATCH) for _ in range(_CRITIC_STEPS))


def train(steps: int) -> tuple[list[list[float]], nn.Module]:
    """A plain loop: the losses of each step, and the generator."""
    generator, critic = _networks()
    optimisers = _optimisers(generator, critic)
    return [_step(generator, critic, optimisers, _batches()) for _ in range(steps)], generator


def train_with_lightning(steps: int) -> tuple[list[list[float]], nn.Module]:
    """The same by a Lightning trainer."""
    import lightning

    class Gan(lightning.LightningModule):
        """The two networks."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = _networks()
            self.losses: list[list[float]] = []

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            """The generator's and the critic's."""
            return _optimisers(self.generator, self.critic)

        def training_step(self, batch: Tensor, index: int) -> None:
            """The step of the plain loop."""
            optimisers = [optimiser.optimizer for optimiser in self.optimizers()]
            self.losses.append(_step(self.generator, self.critic, optimisers, _batches()))

    model = Gan()
    trainer = lightning.Trainer(
        max_steps=-1,
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Each step draws its own data; the loader only counts, and leaves the default generator alone.
    counter = torch.utils.data.DataLoader(torch.arange(steps), generator=torch.Generator())
    trainer.fit(model, counter)
    return model.losses, model.generator


def main() -> None:
    """Trains, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lightning", action="store_true")
    arguments = parser.parse_args()
    losses, generator = (train_with_lightning if arguments.lightning else train)(arguments.steps)
    with torch.no_grad():
        modes, _ = coverage(generator(torch.randn(1000, _LATENT)))
    print(f"losses at last: critic {losses[-1][0]:.3f}, generator {losses[-1][1]:.3f}")
    print(f"{modes} of 8 Gaussians")


if __name__ == "__main__":
    main()
