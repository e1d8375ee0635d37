"""Where it all begins: one Gaussian, fitted to points by maximum likelihood."""

import math

import numpy as np
import torch

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.plot_style import BLUE, DEPTH, INK, PALE, RED, page
from ldm.data.toy import Gaussian

POINTS = 120


def gaussian(setting: Setting) -> Drawing:
    """Histogram, truth and fit; and the mean log-likelihood over (mu, sigma), which gradient ascent climbs."""
    truth = Gaussian(1.0, 0.5)
    points = truth.sample(POINTS, np.random.default_rng(0))[:, 0]
    fit = Gaussian.fit(points)
    mu, sigma = float(fit.mean[0]), math.sqrt(fit.covariance[0, 0])
    figure, axes = page(1, 2, height=2.9, width_ratios=(1.1, 1))
    _histogram(axes[0, 0], points, truth, fit)
    path = ascent(points, -0.2, 1.15)
    _surface(axes[0, 1], points, path, (mu, sigma))
    best = mean_log_likelihood(points, mu, sigma)
    numbers = {
        "points": POINTS,
        "maximum-likelihood mean": mu,
        "maximum-likelihood std": sigma,
        "mean log-likelihood at the fit (nats)": float(best),
        "the same at the truth (1, 0.5)": float(mean_log_likelihood(points, 1.0, 0.5)),
        "gradient ascent ends at": f"({path[-1, 0]:.4f}, {path[-1, 1]:.4f})",
    }
    return Drawing(figure, numbers)


def mean_log_likelihood(points: np.ndarray, mu, sigma) -> np.ndarray:
    """(1/n) sum_i ln N(x_i; mu, sigma^2) in nats; needs no more of the points than their mean and variance."""
    square = points.var() + (points.mean() - mu) ** 2
    return -0.5 * np.log(2 * math.pi * sigma**2) - square / (2 * sigma**2)


def ascent(points: np.ndarray, mu: float, sigma: float, steps: int = 80, rate: float = 0.08) -> np.ndarray:
    """Gradient ascent on the mean log-likelihood over (mu, ln sigma): the points it visits, (steps + 1, 2).

    With y = (x - mu) / sigma the gradient is (mean(y) / sigma, mean(y^2) - 1).
    """
    path = [(mu, sigma)]
    for _ in range(steps):
        y = (points - mu) / sigma
        mu, sigma = mu + rate * y.mean() / sigma, sigma * math.exp(rate * ((y**2).mean() - 1))
        path.append((mu, sigma))
    return np.array(path)


def _histogram(axes, points: np.ndarray, truth: Gaussian, fit: Gaussian) -> None:
    x = np.linspace(-0.8, 2.8, 300)
    axes.hist(points, 20, density=True, color=PALE, edgecolor="white", linewidth=0.5)
    for toy, colour, line, label in ((fit, BLUE, "-", "maximum likelihood"), (truth, INK, ":", "truth")):
        density = toy.log_density(torch.from_numpy(x)[:, None]).exp()
        axes.plot(x, density, color=colour, linestyle=line, label=label)
    axes.set(title=f"{len(points)} points and the fit", xlabel="x", ylabel="density", xlim=(-0.8, 2.8))
    axes.set_ylim(top=1.05)
    axes.legend(loc="upper left")


def _surface(axes, points: np.ndarray, path: np.ndarray, best: tuple[float, float]) -> None:
    mu, sigma = np.meshgrid(np.linspace(-0.4, 2.2, 200), np.linspace(0.25, 1.3, 200))
    values = mean_log_likelihood(points, mu, sigma)
    levels = [-8, -4, -2.5, -1.8, -1.4, -1.15, -1, -0.9, -0.82, -0.76, -0.7]
    axes.contourf(mu, sigma, values, levels, colors=list(DEPTH(np.linspace(0, 0.7, len(levels)))), extend="min")
    axes.plot(*path.T, color=INK, linewidth=0.8, marker=".", markersize=3, label="gradient ascent")
    axes.plot(*best, color=RED, marker="+", markersize=9, linestyle="", label="closed form")
    axes.set(title="mean log-likelihood", xlabel=r"mean $\mu$", ylabel=r"standard deviation $\sigma$")
    axes.legend(loc="upper right")
