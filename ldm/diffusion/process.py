"""The noise process of training: x_t, timestep, target and loss weight from x_0, eps and t."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ldm.diffusion.loss_weighting import LOSS_WEIGHTS
from ldm.diffusion.parameterization import PREDICTIONS, convert
from ldm.diffusion.schedules import NUM_TRAIN_TIMESTEPS, SCHEDULES, Times, in_double
from ldm.diffusion.time_sampling import TIME_DENSITIES

Batch = Float[Tensor, "b *rest"]


def expand_to(values: Shaped[Tensor, "..."], like: Batch) -> Float[Tensor, "..."]:
    """Values of shape (B,) as (B, 1, ...), to broadcast against (B, ...), in the other's dtype.

    One value for all, (), stays as it is: on the CPU too it goes with tensors of any device, and nothing waits for it.
    """
    values = values.to(like.dtype)
    return values.view(-1, *[1] * (like.ndim - 1)) if values.ndim else values


def whole_steps(t: Times, num_steps: int = NUM_TRAIN_TIMESTEPS) -> tuple[Times, Times]:
    """t rounded up to a multiple of 1 / num_steps, and the multiple before it."""
    index = (t * num_steps - 1e-3).ceil().clamp(min=1)
    return index / num_steps, (index - 1) / num_steps


class NoiseProcess:
    """x_t = alpha_t x_0 + sigma_t eps, and what the network learns from it.

    Args:
        process: a name in `SCHEDULES`.
        prediction_type: a name in `PREDICTIONS`.
        timesteps: a name in `TIME_DENSITIES`.
        stratified: one t from each of B equal intervals, which lowers the variance of the loss.
        shift: resolution shift of the schedule, see `Schedule`.
        zero_terminal_snr: rescale a tabulated schedule so that x_1 is pure noise.
        weight, weight_parameter: a name in `LOSS_WEIGHTS`, and its number (None = the paper's).
        learned_variance, vlb_weight: the network also predicts the reverse variance, see `variational_loss`.
    """

    def __init__(
        self,
        process: str = "flow",
        prediction_type: str = "flow",
        timesteps: str = "logit_normal",
        stratified: bool = True,
        shift: float = 1.0,
        zero_terminal_snr: bool = False,
        weight: str = "uniform",
        weight_parameter: float | None = None,
        learned_variance: bool = False,
        vlb_weight: float = 0.001,
    ):
        options = {"zero_terminal_snr": True} if zero_terminal_snr else {}
        self.schedule = SCHEDULES[process](shift, **options)
        self.prediction_type, self.timesteps, self.stratified = prediction_type, timesteps, stratified
        self.weight, self.weight_parameter = weight, weight_parameter
        self.learned_variance, self.vlb_weight = learned_variance, vlb_weight

    def draw_times(self, batch_size: int, generator: torch.Generator | None = None) -> Float[Tensor, " b"]:
        """t in [first_time, 1], shape (B,), float32."""
        u = torch.rand(batch_size, generator=generator)
        if self.stratified:
            u = (torch.randperm(batch_size, generator=generator) + u) / batch_size
        t = TIME_DENSITIES[self.timesteps](u, self.schedule).clamp(min=self.schedule.first_time)
        return whole_steps(t)[0] if self.learned_variance else t  # the bound is a sum over whole steps

    def timestep(self, t: Times) -> Times:
        """The network's time input, float, shape of t."""
        return self.schedule.timestep(t)

    def scales(self, t: Times) -> tuple[Times, Times]:
        """alpha_t and sigma_t, each of t's shape."""
        return self.schedule.scales(t)

    def network_input(self, x_t: Batch, t: Times) -> Batch:
        return expand_to(self.schedule.input_scale(t), x_t) * x_t

    def corrupt(self, x0: Batch, eps: Batch, t: Float[Tensor, " b"]) -> Batch:
        """x_t = alpha_t x_0 + sigma_t eps."""
        alpha, sigma = self._scales_for(x0, t)
        return alpha * x0 + sigma * eps

    def target(self, x0: Batch, eps: Batch, t: Float[Tensor, " b"]) -> Batch:
        """What the network should predict: a x_0 + b eps, see `PREDICTIONS`."""
        a, b = PREDICTIONS[self.prediction_type](*self._scales_for(x0, t))
        return a * x0 + b * eps

    def convert(self, prediction: Batch, x_t: Batch, t: Times, target: str) -> Batch:
        """The network's prediction as 'sample', 'epsilon' or any other type, see `parameterization.convert`."""
        return convert(prediction, x_t, *self._scales_for(x_t, t), self.prediction_type, target)

    def predict_x0(self, x_t: Batch, prediction: Batch, t: Times) -> Batch:
        """x_0 as the prediction implies it."""
        return self.convert(prediction, x_t, t, "sample")

    def loss_weight(self, t: Times) -> Times:
        """Weight of each sample's squared error in what the network predicts.

        With p = a x_0 + b eps and x_t given, dp/dx_0 = a - b alpha / sigma; its square turns a weight on the error of
        x_0 into one on the error of p.
        """
        weight = LOSS_WEIGHTS[self.weight]
        if weight is None:
            return torch.ones_like(t)
        alpha, sigma = (in_double(scale).clamp(min=1e-6) for scale in self.scales(t))
        a, b = PREDICTIONS[self.prediction_type](alpha, sigma)
        options = {} if self.weight_parameter is None else {"c": self.weight_parameter}
        return (weight((alpha / sigma) ** 2, **options) / (a - b * alpha / sigma) ** 2).to(t)

    def _scales_for(self, x: Batch, t: Times) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.scales(t)
        return expand_to(alpha, x), expand_to(sigma, x)
