"""The noise process: x0, eps and a time to x_t, the network's target and its weight in the loss."""

from typing import TYPE_CHECKING

from ldm.diffusion.loss_weighting import WEIGHTS
from ldm.diffusion.parameterization import PREDICTIONS, convert
from ldm.diffusion.schedules import NUM_TRAIN_TIMESTEPS, SCHEDULES
from ldm.diffusion.time_sampling import TIMES

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def rows(values: "Tensor", like: "Tensor") -> "Tensor":
    """(B,) or () shaped to broadcast against (B, ...), in the other's dtype."""
    return values.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def previous_step(t: "Tensor", num_steps: int = NUM_TRAIN_TIMESTEPS) -> "tuple[Tensor, Tensor]":
    """t rounded up to a multiple of 1 / num_steps, and the multiple before it."""
    index = (t * num_steps - 1e-3).ceil().clamp(min=1)
    return index / num_steps, (index - 1) / num_steps


class NoiseProcess:
    """x0, eps, time -> x_t, network timestep, target and loss weight.

    Args:
        process: a name in `SCHEDULES`.
        prediction_type: a name in `PREDICTIONS`.
        timesteps: a name in `TIMES`.
        stratified: one time from each of B equal parts, which lowers the loss's variance.
        shift: resolution shift of the schedule, see `Schedule`.
        zero_terminal_snr: rescale a tabled schedule so that x_1 is nothing but noise.
        weight, weight_parameter: a name in `WEIGHTS`, and its number (None = the paper's).
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

    def draw_times(self, batch_size: int, generator: "torch.Generator | None" = None) -> "Tensor":
        """Times t in [first_time, 1], shape (B,), float32."""
        import torch

        u = torch.rand(batch_size, generator=generator)
        if self.stratified:
            u = (torch.randperm(batch_size, generator=generator) + u) / batch_size
        times = TIMES[self.timesteps](u, self.schedule).clamp(min=self.schedule.first_time)
        return previous_step(times)[0] if self.learned_variance else times  # the bound is a sum over whole steps

    def timestep(self, t: "Tensor") -> "Tensor":
        """What the network is told, float, shape of t."""
        return self.schedule.timestep(t)

    def scales(self, t: "Tensor") -> "tuple[Tensor, Tensor]":
        """alpha_t and sigma_t, each of t's shape."""
        return self.schedule.scales(t)

    def network_input(self, x_t: "Tensor", t: "Tensor") -> "Tensor":
        return rows(self.schedule.input_scale(t), x_t) * x_t

    def corrupt(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """x_t = alpha_t x0 + sigma_t eps; shapes (B, ...) and t (B,)."""
        alpha, sigma = self.scales(t)
        return rows(alpha, x0) * x0 + rows(sigma, x0) * eps

    def target(self, x0: "Tensor", eps: "Tensor", t: "Tensor") -> "Tensor":
        """What the network should predict, shape of x0."""
        a, b = PREDICTIONS[self.prediction_type](*(rows(scale, x0) for scale in self.scales(t)))
        return a * x0 + b * eps

    def convert(self, prediction: "Tensor", x_t: "Tensor", t: "Tensor", target: str) -> "Tensor":
        """The network's prediction as 'sample', 'epsilon' or any other kind, see `convert`."""
        alpha, sigma = (rows(scale, x_t) for scale in self.scales(t))
        return convert(prediction, x_t, alpha, sigma, self.prediction_type, target)

    def predict_x0(self, x_t: "Tensor", prediction: "Tensor", t: "Tensor") -> "Tensor":
        """The clean sample that a prediction implies, shape of x_t."""
        return self.convert(prediction, x_t, t, "sample")

    def loss_weight(self, t: "Tensor") -> "Tensor":
        """Weight of each sample's squared error in what the network predicts, shape (B,).

        With p = a x0 + b eps and x_t given, dp/dx0 = a - b alpha / sigma; its square turns a weight on the error of x0
        into one on the error of p.
        """
        weigh = WEIGHTS[self.weight]
        if weigh is None:
            return t * 0 + 1
        alpha, sigma = (scale.double().clamp(min=1e-6) for scale in self.scales(t))
        a, b = PREDICTIONS[self.prediction_type](alpha, sigma)
        options = {} if self.weight_parameter is None else {"c": self.weight_parameter}
        return (weigh((alpha / sigma) ** 2, **options) / (a - b * alpha / sigma) ** 2).to(t.dtype)
