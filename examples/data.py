"""The data of the examples: scikit-learn's digits, and the draws behind the chapter's table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits as load_sklearn_digits
from torch import Tensor

SIDE = 8  # pixels
PIXELS = SIDE * SIDE
LEVELS = 17  # of grey
TRAINING_IMAGES, BATCH = 1440, 96  # of 1797; every batch is full
CHAPTER_DRAWS = Path(__file__).parents[1] / "tests" / "data" / "chapter_table_42_1.npz"


@dataclass(frozen=True)
class Digits:
    """Pixels in [0, 1], (N, 64), and labels, (N,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load_digits() -> Digits:
    """1797 digits of 8 x 8 pixels, in a fixed random order."""
    digits = load_sklearn_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(digits.data / (LEVELS - 1), dtype=torch.float32)[order]
    labels = torch.tensor(digits.target)[order]
    n = TRAINING_IMAGES
    return Digits(pixels[:n], labels[:n], pixels[n:], labels[n:])


def as_images(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as images in [-1, 1], (N, 1, 8, 8)."""
    return (2 * pixels - 1).view(-1, 1, SIDE, SIDE)


def as_pixels(images: Tensor) -> Tensor:
    """The inverse of :func:`as_images`, clipped to [0, 1]."""
    return ((images + 1) / 2).clamp(0, 1).flatten(1)


def load_chapter_draws() -> dict[str, np.ndarray]:
    """x0 (600, 2), eps (40, 600, 2), component (600,) and summary (41, 3), float64."""
    with np.load(CHAPTER_DRAWS) as draws:
        return dict(draws)
