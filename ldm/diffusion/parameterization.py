"""What the network predicts: epsilon, sample, v, flow or score, and each from the others."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


# Each prediction is a x0 + b eps, with (a, b) from alpha and sigma. With x_t = alpha x0 + sigma eps it gives both back.
PREDICTIONS: dict[str, Callable] = {
    "epsilon": lambda alpha, sigma: (0 * alpha, 0 * alpha + 1),
    "sample": lambda alpha, sigma: (0 * alpha + 1, 0 * alpha),
    # Salimans and Ho 2022, arXiv 2202.00512, app. D; the norm makes it EDM's preconditioning where alpha = 1
    "v_prediction": lambda alpha, sigma: (-sigma / (n := (alpha**2 + sigma**2) ** 0.5), alpha / n),
    "flow": lambda alpha, sigma: (0 * alpha - 1, 0 * alpha + 1),  # the velocity dx_t/dt of flow
    "score": lambda alpha, sigma: (0 * alpha, -1 / sigma),  # grad log p_t(x_t), Song et al. 2021, arXiv 2011.13456
}


def convert(prediction: "Tensor", x_t: "Tensor", alpha, sigma, source: str, target: str) -> "Tensor":
    """A prediction of kind `source` as one of kind `target`; alpha and sigma broadcast against x_t.

    Solves x_t = alpha x0 + sigma eps and prediction = a x0 + b eps for (x0, eps). From epsilon (or score) to x0 this
    needs alpha > 0, from x0 to epsilon sigma > 0.
    """
    (a, b), (c, d) = (PREDICTIONS[kind](alpha, sigma) for kind in (source, target))
    # c x0 + d eps with x0 = (b x_t - sigma p) / det and eps = (alpha p - a x_t) / det
    return ((c * b - d * a) * x_t + (d * alpha - c * sigma) * prediction) / (alpha * b - sigma * a)
