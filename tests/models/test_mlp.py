"""The denoiser of points."""

import torch

from ldm.config.settings import MlpModel
from ldm.models.mlp import build_mlp
from ldm.models.unet import choose_attention


def test_the_denoiser_of_points_hears_time_and_text(tmp_path):
    torch.manual_seed(0)
    network = build_mlp(MlpModel(width=32, layers=2), 2, 24).eval()
    x, t, text = torch.randn(3, 2, 1, 1), torch.tensor([10.0, 500.0, 900.0]), torch.randn(3, 5, 24)
    with torch.no_grad():
        plain = network(x, t, text).sample
        assert (
            plain.shape == x.shape and choose_attention(network, "xformers", torch.device("cpu"), half=True) == "none"
        )
        for changed in (network(x, t.flip(0), text), network(x, t, text.flip(0))):
            assert (changed.sample - plain)[[0, 2]].abs().max() > 1e-5
        one = network(x[:1], t[0], text[:1], return_dict=False)[0]  # one time for all, as schedulers give it
        torch.testing.assert_close(one, plain[:1])
        network.save_pretrained(tmp_path)
        torch.testing.assert_close(type(network).from_pretrained(tmp_path)(x, t, text).sample, plain)
