"""Sliced Wasserstein distance between equally many points.

Project on a direction, sort both sets, take the mean of |difference|^p; then the mean over directions and the p-th
root. It is exact along each direction. In the plane the directions are evenly spaced over half a turn.
"""

import math

import torch
from torch import Tensor


def directions(dims: int, count: int) -> Tensor:
    """Unit vectors, float64 (dims, count): spread evenly over half a turn in the plane, the one there is on a line."""
    if dims == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if dims == 2:
        angles = (torch.arange(count, dtype=torch.float64) + 0.5) / count * math.pi
        return torch.stack([angles.cos(), angles.sin()])
    vectors = torch.randn(dims, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return vectors / vectors.norm(dim=0)


def projected(points: Tensor, count: int) -> Tensor:
    """Points (n, d) on each direction, sorted: float64 (n, directions)."""
    return (points.double() @ directions(points.shape[1], count)).sort(0).values


def distance(first: Tensor, second: Tensor, p: int) -> float:
    """Sliced Wasserstein distance of two `projected` sets of one size."""
    if first.shape != second.shape:
        raise ValueError(f"both sets must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    return (first - second).abs().pow(p).mean().item() ** (1 / p)


def sliced_wasserstein(first: Tensor, second: Tensor, p: int = 2, count: int = 128) -> float:
    """(mean over directions of W_p^p)^(1/p) between equally many points (n, d), exact along each direction.

    Source: Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures; p = 2 there.
    """
    return distance(projected(first, count), projected(second, count), p)
