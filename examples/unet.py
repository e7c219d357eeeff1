"""A small U-Net for images of 8 x 8 pixels: what the diffusion examples train."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, TIME, GROUPS = 32, 128, 8


class Block(nn.Module):
    """Two convolutions around the time embedding, and a way past them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = self._convolution(before, after)
        self.time = nn.Linear(TIME, after)
        self.second = self._convolution(after, after)
        self.past = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    @staticmethod
    def _convolution(before: int, after: int) -> nn.Module:
        norm = nn.GroupNorm(GROUPS, before)
        return nn.Sequential(norm, nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (B, before, H, W)."""
        h = self.first(x) + self.time(embedding)[:, :, None, None]
        return self.past(x) + self.second(h)


class UNet(nn.Module):
    """Noise of (B, 1, 8, 8) images at steps t, (B,): 8 x 8, 4 x 4 and 8 x 8 pixels again."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        half = TIME // 4
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.arange(half) / half))
        self.embed = nn.Sequential(
            nn.Linear(2 * half, TIME), nn.SiLU(), nn.Linear(TIME, TIME), nn.SiLU()
        )
        self.stem = nn.Conv2d(1, WIDTH, 3, padding=1)
        self.down = Block(WIDTH, WIDTH)
        self.middle = nn.ModuleList(
            [Block(WIDTH, 2 * WIDTH), Block(2 * WIDTH, 2 * WIDTH), Block(2 * WIDTH, 2 * WIDTH)]
        )
        self.up = Block(3 * WIDTH, WIDTH)
        self.head = nn.Sequential(
            nn.GroupNorm(GROUPS, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 1, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The predicted noise, in x's shape."""
        angles = t[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
        fine = self.down(self.stem(x), embedding)
        h = F.avg_pool2d(fine, 2)
        for block in self.middle:
            h = block(h, embedding)
        h = torch.cat([F.interpolate(h, scale_factor=2), fine], 1)
        return self.head(self.up(h, embedding))


def make_unet() -> UNet:
    """Channels last, which CPUs convolve faster."""
    return UNet().to(memory_format=torch.channels_last)
