"""`ldm likelihood`: exact models of known data are given their exact values, and the parts add up."""

import argparse
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_model import tiny_pipeline

from ldm.cli import likelihood as likelihood_cli
from ldm.config.settings import DataOptions, ToyOptions
from ldm.data.toy import exact_denoiser, splits
from ldm.diffusion.likelihood import log_likelihood
from ldm.diffusion.parameterization import convert
from ldm.diffusion.process import NoiseProcess, expand_to
from ldm.diffusion.sampling import denoise_with
from ldm.evaluation.likelihood import Plan, likelihood_of_run, measure, model_denoise
from ldm.models.identity_autoencoder import IdentityAutoencoder
from ldm.utils.errors import UserError


def toy_data(name="gaussian", captions=False):
    return splits(DataOptions(source="toy", toy=ToyOptions(name=name, size=2000, captions=captions)))


def exact_pipeline(process, data):
    """A pipeline whose network is exact, also for a part that it is told the name of: text states are its number."""
    toy = data["test"].toy

    def encode_prompt(prompts):
        numbers = [next((i for i, part in enumerate(toy.parts) if part in prompt), -1) for prompt in prompts]
        return torch.tensor(numbers).view(-1, 1, 1)

    def predict(x, timestep, states):
        t = process.schedule.from_timestep(timestep.double())
        x0_hat = torch.zeros_like(x)
        for number in states.unique().tolist():
            known = toy if number < 0 else toy.part(number)
            chosen = states.flatten() == number
            x0_hat[chosen] = exact_denoiser(known, process.schedule)(x[chosen], t)
        alpha, sigma = (expand_to(scale, x) for scale in process.scales(t))
        return convert(x0_hat, x, alpha, sigma, "sample", process.prediction_type)

    vae = IdentityAutoencoder(toy.dims, toy.dims, toy.dims)

    def denoiser(states, process):
        return denoise_with(process, lambda x, t: predict(x.double(), t, states.expand(len(x), -1, -1)))

    parts = {"encode_prompt": encode_prompt, "denoiser": denoiser}
    return SimpleNamespace(vae=vae, dtype=torch.float64, device=torch.device("cpu"), **parts)


def test_an_exact_model_reaches_the_truth():
    process, data = NoiseProcess(), toy_data("mixture")
    pipeline = exact_pipeline(process, data)
    found = measure(pipeline, process, data["train"], data["test"], Plan(limit=150, steps=60, exact=True, ode_steps=60))
    assert (found["space"], found["items"], found["dims"], found["variance"]) == ("points", 150, 1, "optimal")
    assert abs(found["exact"]["nats"] - found["truth"]) < 2e-3
    assert -0.1 < found["bound"]["nats"] - found["truth"] < 0.3  # one draw of the noise, and 60 steps
    assert found["bound"]["nats"] == pytest.approx(sum(term["nats"] for term in found["terms"]))
    points = torch.from_numpy(data["test"].points[:20])
    denoise = model_denoise(pipeline, process, pipeline.encode_prompt([""]))
    nats = -log_likelihood(denoise, points.double()[..., None, None], process.schedule, 60)
    torch.testing.assert_close(nats, -data["test"].toy.log_density(points.double()), atol=2e-3, rtol=0)


@pytest.mark.slow
def test_captions_make_the_data_more_probable():
    process, data = NoiseProcess("cosine", "epsilon"), toy_data("mixture", captions=True)
    pipeline, plan = exact_pipeline(process, data), {"limit": 60, "steps": 20, "exact": True, "ode_steps": 60}
    told = measure(pipeline, process, data["train"], data["test"], Plan(**plan))
    alone = measure(pipeline, process, data["train"], data["test"], Plan(**plan, captions=False))
    assert told["captions"] and not alone["captions"]
    for found in (told, alone):
        assert abs(found["exact"]["nats"] - found["truth"]) < 0.02  # the first of 1000 times blurs by 1 in 100
    assert told["exact"]["nats"] < alone["exact"]["nats"] - 0.3


class Pictures:
    """Grey pictures of 16 x 16 with a caption each."""

    has_captions, resolution, channels = True, 16, 1

    def __init__(self, seed):
        self.pixels = np.random.default_rng(seed).integers(0, 256, (8, 16, 16, 1), dtype=np.uint8)

    def __len__(self):
        return len(self.pixels)

    def image(self, i):
        return self.pixels[i]

    def caption(self, i, rng):
        return "ab"[i % 2]


def test_the_parts_of_a_latent_model_add_up():
    plan = Plan(limit=4, steps=3, exact=True, ode_steps=1, batch=2)
    pipeline, process = tiny_pipeline(), NoiseProcess()
    found = measure(pipeline, process, Pictures(0), Pictures(1), plan)
    assert (found["space"], found["dims"], found["latent_dims"]) == ("latents", 256, 256)
    assert [term["what"] for term in found["terms"][:3]] == ["-ln p(x | z)", "ln q(z | x)", "-ln p(x0 | x_t)"]
    assert found["bound"]["nats"] == pytest.approx(sum(term["nats"] for term in found["terms"]))
    assert found["bound"]["bits_per_dim"] == pytest.approx(found["bound"]["nats"] / 256 / np.log(2))
    assert np.isfinite(found["exact"]["nats"]) and found["decoder_std"] > 0
    again = measure(pipeline, process, Pictures(0), Pictures(1), replace(plan, exact=False))
    assert again["bound"] == found["bound"]  # the seed decides
    lines = likelihood_cli.table(found).splitlines()
    assert lines[0].startswith("4 images of 256 numbers, with their captions; 3 steps in latents, optimal variance")
    assert any("bits per dimension" in line for line in lines)


def test_what_has_no_density_is_refused(tmp_path):
    with pytest.raises(UserError, match="gives no density"):
        measure(
            SimpleNamespace(vae=SimpleNamespace(config={"num_vq_embeddings": 4})),
            NoiseProcess(),
            Pictures(0),
            Pictures(1),
            Plan(),
        )
    clear = SimpleNamespace(channels=4, resolution=16)
    with pytest.raises(UserError, match="transparent images gives no density"):
        measure(SimpleNamespace(vae=SimpleNamespace(config={})), NoiseProcess(), clear, clear, Plan())
    with pytest.raises(UserError, match="has no config.yaml: name a finished run"):
        likelihood_of_run(tmp_path, Plan())
    parser = argparse.ArgumentParser()
    likelihood_cli.add_parser(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["likelihood", "runs/x/ldm", "--limit", "0"])
    assert parser.parse_args(["likelihood", "runs/x/ldm"]).folder.name == "ldm"
