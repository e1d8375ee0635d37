"""What the network predicts (epsilon, x_0, v, the flow's velocity or the score), and each from any other."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Scale = Float[Tensor, "..."] | float  # broadcasts against x_t


def _v_coefficients(alpha: Scale, sigma: Scale) -> tuple[Scale, Scale]:
    """v = (alpha eps - sigma x_0) / sqrt(alpha^2 + sigma^2): Salimans and Ho 2022, arXiv 2202.00512, app. D.

    The root is 1 for a schedule that preserves variance, and makes v EDM's preconditioning where alpha = 1.
    """
    norm = (alpha**2 + sigma**2) ** 0.5
    return -sigma / norm, alpha / norm


# (alpha, sigma) -> (a, b): the prediction is a x_0 + b eps. Together with x_t = alpha x_0 + sigma eps it gives both.
PREDICTIONS: dict[str, Callable[[Scale, Scale], tuple[Scale, Scale]]] = {
    "epsilon": lambda alpha, sigma: (0.0, 1.0),
    "sample": lambda alpha, sigma: (1.0, 0.0),
    "v_prediction": _v_coefficients,
    "flow": lambda alpha, sigma: (-1.0, 1.0),  # dx_t/dt of rectified flow: Liu et al. 2022, arXiv 2209.03003
    "score": lambda alpha, sigma: (0.0, -1 / sigma),  # grad log p_t(x_t): Song et al. 2021, arXiv 2011.13456
}


def convert(
    prediction: Float[Tensor, "*shape"],
    x_t: Float[Tensor, "*shape"],
    alpha: Scale,
    sigma: Scale,
    source: str,
    target: str,
) -> Float[Tensor, "*shape"]:
    """A prediction of type `source` as one of type `target` (names in `PREDICTIONS`).

    With source p = a x_0 + b eps, target q = c x_0 + d eps and x_t = alpha x_0 + sigma eps:

        x_0 = (b x_t - sigma p) / (alpha b - sigma a)        eps = (alpha p - a x_t) / (alpha b - sigma a)

    From epsilon (or score) to x_0 this needs alpha > 0, from x_0 to epsilon sigma > 0.
    """
    a, b = PREDICTIONS[source](alpha, sigma)
    c, d = PREDICTIONS[target](alpha, sigma)
    return ((c * b - d * a) * x_t + (d * alpha - c * sigma) * prediction) / (alpha * b - sigma * a)
