"""How much the squared error counts at each noise level.

A weight is a function of the snr and one number c, whose default is the paper's, on the squared error of x_0;
`NoiseProcess.loss_weight` turns it into one on what the network predicts. `uniform` and `learned` weigh the error of
the prediction itself, whatever its type.
"""

import math
from collections.abc import Callable

from torch import Tensor

LOSS_WEIGHTS: dict[str, Callable[..., Tensor] | None] = {
    "uniform": None,
    "min_snr": lambda snr, c=5.0: snr.clamp(max=c),  # Hang et al. 2023, arXiv 2303.09556
    "soft_min_snr": lambda snr, c=5.0: c * snr / (c + snr),  # Crowson et al. 2024, arXiv 2401.11605
    "p2": lambda snr, c=1.0: snr / (1 + snr) ** c,  # Choi et al. 2022, arXiv 2204.00227: k = 1, gamma = c
    "sigmoid": lambda snr, c=2.0: snr / (1 + snr * math.exp(-c)),  # sigmoid(c - logsnr) of eps: arXiv 2303.00848
    "debiased": lambda snr, c=0.5: snr**c,  # Yu et al. 2023, arXiv 2310.08442: 1 / sqrt(snr) of eps
    "edm": lambda snr, c=1.0: snr + c,  # Karras et al. 2022, arXiv 2206.00364, table 1, sigma_data = 1
    "learned": None,  # exp(-u(t)) with + u(t) in the loss: Karras et al. 2024, arXiv 2312.02696
}
