"""Training on several processes: the losses and the noise of one.

The VAE and the U-Net of the demo are trained on 1, 2 and 4 processes of this machine with
DistributedDataParallel, and on 2 with FSDP2. An image's noise comes from a key made of its index in
the data set, so it does not depend on the process that trains on it: the noise has the same bits
in every run, and the losses differ by the rounding of gradients that are summed in another order.

`make distributed` runs it with `python -m examples.distributed`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from examples.data import BATCH, as_images, load_digits
from examples.ddpm_digits import SCHEDULE, T
from examples.unet import Block, UNet
from examples.vae_digits import LATENT, make_model
from genkern import diffusion, random, vae

LEARNING_RATE = 1e-3


class DigitsVAE(nn.Module):
    """The demo's VAE, from pixels to the mean loss of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = make_model()

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """x: (B, 64) pixels; keys: (B, 2)."""
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        z, kl = vae.rsample_kl(mu, logvar, key=keys)
        return vae.bernoulli_nll(self.decoder(z), x) + kl


class DigitsDDPM(nn.Module):
    """The demo's diffusion model, likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.network = UNet()  # not channels last, which FSDP2 does not take

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        """x: (B, 64) pixels; keys: (B, 2)."""
        x0 = as_images(x)
        for_t, for_noise = random.split(keys)  # a sample's step does not depend on its batch either
        t = (random.uniform(for_t, len(x), 1) * T).long().squeeze(1)
        x_t = diffusion.q_sample(x0, t, SCHEDULE, key=for_noise)
        return diffusion.noise_loss(self.network(x_t, t), x0, t, SCHEDULE, key=for_noise)


MODELS = {"VAE": DigitsVAE, "DDPM": DigitsDDPM}


@dataclass(frozen=True)
class Setting:
    """How many processes train, and how they share the work."""

    processes: int
    method: str  # "DDP" or "FSDP2"


SETTINGS = (Setting(1, "DDP"), Setting(2, "DDP"), Setting(4, "DDP"), Setting(2, "FSDP2"))


@dataclass(frozen=True)
class Run:
    """What a run gave; the same on every process."""

    loss: Tensor  # one a step, of the whole batch
    noise: Tensor  # (steps, BATCH, LATENT), drawn from the keys of the batch
    seconds: float


def shared(model: nn.Module, method: str) -> nn.Module:
    """The model, trained by all processes of the group."""
    if method == "DDP":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gathered(part: Tensor) -> Tensor:
    """The parts of all processes, one after the other along dim 1."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts, dim=1)


def train(name: str, method: str, pixels: Tensor, steps: int, seed: int) -> Run:
    """Trains a model on this process's share of every batch."""
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(seed)
    model = shared(MODELS[name]().to(pixels.dtype), method)
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    shuffle = torch.Generator().manual_seed(seed)
    key = random.key(seed)

    losses, noise = [], []
    start = time.perf_counter()
    title = f"{name:<4} {count} x {method}"
    for step in tqdm(range(steps), desc=f"{title:<14}", unit="step", disable=rank > 0):
        batch = torch.randperm(len(pixels), generator=shuffle)[:BATCH]
        indices = batch.chunk(count)[rank]  # in the data set, not in the batch
        keys = random.fold_in(random.fold_in(key, step), indices)
        loss = model(pixels[indices], keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        noise.append(random.normal(keys, len(keys), LATENT))
    seconds = time.perf_counter() - start
    # Equal shares: the mean of means is the mean.
    loss = gathered(torch.stack(losses).unsqueeze(1)).mean(1)
    return Run(loss, gathered(torch.stack(noise)), seconds)


def work(rank: int, steps: int, seed: int, folder: str) -> None:
    """One process: takes part in every setting that has room for it.

    The first process writes down what came out.
    """
    pixels = load_digits().train
    found: dict[Setting, dict[str, Run]] = {}
    for number, setting in enumerate(SETTINGS):
        if rank < setting.processes:
            meeting = f"file://{folder}/{number}"
            dist.init_process_group(
                "gloo", init_method=meeting, rank=rank, world_size=setting.processes
            )
            found[setting] = {
                name: train(name, setting.method, pixels, steps, seed) for name in MODELS
            }
            dist.destroy_process_group()
    if rank == 0:
        torch.save(found, Path(folder) / "found.pt")


def run_all(steps: int, seed: int) -> dict[Setting, dict[str, Run]]:
    """Every setting, one after the other."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a process imports torch
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (steps, seed, folder), nprocs=max(s.processes for s in SETTINGS))
        return torch.load(Path(folder) / "found.pt", weights_only=False)


def rows(found: dict[Setting, dict[str, Run]]) -> list[tuple[str, ...]]:
    """The table: every run against the one of a single process."""
    from examples.report import time_text

    alone = found[SETTINGS[0]]
    table = []
    for name in MODELS:
        for setting, runs in found.items():
            run, first = runs[name], alone[name]
            difference, noise = "-", "-"
            if run is not first:
                difference = f"{((run.loss - first.loss) / first.loss).abs().max().item():.1e}"
                noise = "equal" if torch.equal(run.noise, first.noise) else "differ"
            title = f"{setting.processes} x {setting.method}"
            last = f"{run.loss[-1].item():.5f}"
            table.append((name, title, last, difference, noise, time_text(run.seconds)))
    return table


def main() -> None:
    """Runs every setting and prints the table."""
    from examples.report import Table, print_table  # not in every process: it draws pictures

    parser = argparse.ArgumentParser(
        prog="python -m examples.distributed", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = run_all(arguments.steps, arguments.seed)
    columns = ("model", "processes", "last loss", "losses differ", "noise bits", "time")
    title = f"Training on several processes, {arguments.steps} steps, float32"
    print_table(title, Table(columns, rows(found), labels=2))
    print("The largest relative difference from the losses of one process, over all steps.")


if __name__ == "__main__":
    main()
