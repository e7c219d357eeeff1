"""How good generated digits are, in the features of a classifier of the real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigvals
from sklearn.neighbors import NearestNeighbors
from sklearn.neural_network import MLPClassifier
from torch import Tensor

from examples.data import SIDE, Digits

FEATURES = 32
NEIGHBOURS = 3  # as in the paper on precision and recall


@dataclass(frozen=True)
class Quality:
    """Of a set of images against the real ones.

    Precision is the share of images among the real ones, recall the share of real ones among the
    images, sharpness the difference of neighbouring pixels over that of real images.
    """

    frechet: float
    precision: float
    recall: float
    sharpness: float


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Between the Gaussians with the means and covariances of x and y.

    Heusel et al., arXiv:1706.08500, (6).
    """
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # The trace of a square root is the sum of the roots of the eigenvalues, which are real and not
    # negative but for rounding.
    mixed = np.sqrt(eigvals(first @ second).real.clip(0)).sum()
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(first + second) - 2 * mixed)


def share_inside(points: np.ndarray, support: np.ndarray) -> float:
    """The share of points nearer to some point of the support than its NEIGHBOURS-th neighbour.

    Kynkaanniemi et al., arXiv:1904.06991, (2).
    """
    neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(support)  # the first is itself
    radii = neighbours.kneighbors(support)[0][:, -1]
    distances = np.linalg.norm(points[:, None] - support[None], axis=2)
    return float((distances <= radii).any(1).mean())


def contrast(pixels: Tensor) -> float:
    """The root mean square of the differences of neighbouring pixels."""
    images = pixels.view(-1, SIDE, SIDE)
    across, down = images.diff(dim=2), images.diff(dim=1)
    return torch.cat([across.flatten(), down.flatten()]).square().mean().sqrt().item()


class Judge:
    """A classifier of the training images, whose hidden layer measures images of pixels."""

    def __init__(self, digits: Digits) -> None:
        self.classifier = MLPClassifier((FEATURES,), max_iter=1000, random_state=0)
        self.classifier.fit(digits.train.numpy(), digits.train_labels.numpy())
        self.accuracy = self.classifier.score(digits.test.numpy(), digits.test_labels.numpy())
        self.real, self.contrast = self.features(digits.train), contrast(digits.train)

    def features(self, pixels: Tensor) -> np.ndarray:
        """(N, FEATURES), after the ReLU."""
        weights, bias = self.classifier.coefs_[0], self.classifier.intercepts_[0]
        return np.maximum(pixels.numpy() @ weights + bias, 0)

    def frechet(self, pixels: Tensor) -> float:
        """Against the training images."""
        return frechet_distance(self.real, self.features(pixels))

    def quality(self, pixels: Tensor) -> Quality:
        """Against the training images."""
        found = self.features(pixels)
        return Quality(
            frechet_distance(self.real, found),
            share_inside(found, self.real),
            share_inside(self.real, found),
            contrast(pixels) / self.contrast,
        )
