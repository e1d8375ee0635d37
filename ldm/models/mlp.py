"""The denoiser of points: a residual multilayer perceptron that time and text modulate."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from jaxtyping import Float
from torch import Tensor, nn

from ldm.config.settings import MlpModel

TIME_FEATURES = 32  # of an MLP


class MLPDenoiser(ModelMixin, ConfigMixin):
    """A residual multilayer perceptron for points; time and pooled text scale and shift every layer.

    Time enters as sines of periods from a fifth of `time_span`, the range of the network's timesteps, to 30 times it.
    Faster ones, as for images, would have the network learn each short interval of time by itself from few points.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int,
        text_width: int,
        width: int = 128,
        layers: int = 4,
        learned_variance: bool = False,
        time_span: float = 1000.0,
        sample_size: int = 1,  # a point is an image of one pixel
    ):
        super().__init__()
        self.first = nn.Linear(in_channels, width)
        self.time = nn.Linear(TIME_FEATURES, TIME_FEATURES)
        self.text = nn.Linear(text_width, TIME_FEATURES)
        self.blocks = nn.ModuleList(_ModulatedLayer(width) for _ in range(layers))
        self.last = nn.Linear(width, in_channels * (1 + learned_variance))

    def forward(
        self,
        sample: Float[Tensor, "b d 1 1"],
        timestep: Tensor | float,
        encoder_hidden_states: Float[Tensor, "b L D"],
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Float[Tensor, "b d_out 1 1"]]:
        times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        features = get_timestep_embedding(
            times, TIME_FEATURES, True, 0, scale=30 / self.config.time_span, max_period=200
        ).to(sample.dtype)
        condition = nn.functional.silu(self.time(features) + self.text(encoder_hidden_states.mean(1).to(sample.dtype)))
        hidden = self.first(sample.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, condition)
        prediction = self.last(hidden)[..., None, None]
        return UNet2DConditionOutput(prediction) if return_dict else (prediction,)


class _ModulatedLayer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.modulate = nn.Linear(TIME_FEATURES, 2 * width)
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Float[Tensor, "b D"], condition: Float[Tensor, "b F"]) -> Float[Tensor, "b D"]:
        scale, shift = self.modulate(condition).chunk(2, 1)
        return hidden + self.linear(nn.functional.silu(hidden * (1 + scale) + shift))


def build_mlp(
    model: MlpModel, channels: int, text_width: int, learned_variance: bool = False, time_span: float = 1000.0
) -> MLPDenoiser:
    """An untrained denoiser of points with `channels` coordinates; other arguments as of `MLPDenoiser`."""
    return MLPDenoiser(channels, text_width, model.width, model.layers, learned_variance, time_span)
