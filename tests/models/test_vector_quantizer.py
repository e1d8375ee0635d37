"""The codebook: straight-through gradients, codes that are means, revival, usage by hand."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.config.settings import VaeModel
from ldm.models.autoencoder import build_vae
from ldm.models.vector_quantizer import Codebook, code_usage, decode_quantized, nearest


def corners(count=40, spread=0.1, seed=0):
    """Four clusters of 2-D vectors around the corners of a square, as latents (1, 2, 4, count); and their means."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    vectors = centres[:, None] + spread * torch.randn(4, count, 2, generator=generator)
    return vectors.permute(2, 0, 1)[None], vectors.mean(1)


def order(codes):
    return codes[(codes > 0).float().mul(torch.tensor([2.0, 1.0])).sum(1).argsort()]


def test_each_vector_becomes_its_nearest_code():
    codes = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    z = torch.tensor([[0.2, 0.9], [0.1, 0.6]]).T.reshape(1, 2, 1, 2)
    quantised, commitment, _ = Codebook(2).eval()(z, codes)
    torch.testing.assert_close(quantised[0, :, 0], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert commitment.item() == pytest.approx((0.64 + 0.01 + 0.01 + 0.36) / 4)


def test_gradients_pass_straight_through():
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    codes = torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)))
    weight = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    book = Codebook(5).train()
    quantised, _, _ = book(z, codes)
    (quantised * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)
    for parameter in (codes, book.usage, book.idle):  # a gradient for every process to exchange, and of no effect
        assert parameter.grad.abs().sum() == 0


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_codes_settle_on_the_means_that_k_means_finds(decay):
    z, means = corners()
    book, codes = Codebook(4, decay, revive_after=20).train(), torch.zeros(4, 2)
    torch.manual_seed(3)
    for _ in range(100):
        book(z, codes)
    torch.testing.assert_close(order(codes), means, atol=1e-4, rtol=0)
    torch.testing.assert_close(book.usage.detach(), torch.full((4,), 40.0), atol=0.01, rtol=0)


def test_one_step_of_the_moving_average_by_hand():
    book, codes = Codebook(2, decay=0.9, revive_after=10).train(), torch.tensor([[0.0], [10.0]])
    with torch.no_grad():
        book.usage.copy_(torch.tensor([2.0, 5.0]))
        book.idle.zero_()
    book(torch.tensor([1.0, 3.0, 2.0]).view(1, 1, 1, 3), codes)
    assert book.usage[0].item() == pytest.approx(0.9 * 2 + 0.1 * 3)
    assert codes[0].item() == pytest.approx((0.9 * 2 * 0 + 0.1 * 6) / 2.1)
    assert codes[1].item() == 10 and book.usage[1].item() == pytest.approx(4.5)
    assert book.idle.tolist() == [0, 1]


def test_a_code_far_from_all_data_comes_back_to_life_after_the_set_number_of_steps():
    z, _ = corners()
    book, codes = Codebook(4, decay=0.5, revive_after=5).train(), torch.zeros(4, 2)
    torch.manual_seed(3)
    for _ in range(30):
        book(z, codes)
    codes[0] = 1000.0
    for _ in range(5):
        assert codes[0, 0] == 1000
        used = book(z, codes)[2]["codes_used"]
        assert used == 0.75
    book(z, codes)
    assert codes[0].abs().max() < 2
    for _ in range(30):
        numbers = book(z, codes)[2]
    assert numbers["codes_used"] == 1


def test_the_first_batch_places_every_code_and_equal_seeds_place_it_alike():
    z, _ = corners()
    placed = []
    for _ in range(2):
        torch.manual_seed(7)
        codes = torch.full((4, 2), 1e-3)
        Codebook(4).train()(z, codes)
        placed.append(codes)
    torch.testing.assert_close(placed[0], placed[1])
    assert (placed[0].abs() > 0.1).any(1).all()


def test_out_of_training_nothing_moves():
    z, _ = corners()
    book, codes = Codebook(4).eval(), torch.eye(4)[:, :2].clone()
    before = codes.clone()
    book(z, codes)
    assert torch.equal(codes, before) and book.usage.sum() == 0


def test_usage_by_hand():
    usage = code_usage(torch.tensor([4.0, 2.0, 2.0, 0.0]))
    assert usage["codes_used"] == 0.75
    assert usage["entropy"] == pytest.approx(1.5)
    assert usage["perplexity"] == pytest.approx(2**1.5)
    even = code_usage(torch.ones(8))
    assert even == pytest.approx({"codes_used": 1.0, "entropy": 3.0, "perplexity": 8.0})


def test_nearest_is_least_distance():
    generator = torch.Generator().manual_seed(0)
    vectors, codes = torch.randn(50, 3, generator=generator), torch.randn(7, 3, generator=generator)
    distances = (vectors[:, None] - codes).square().sum(-1)
    assert torch.equal(nearest(vectors, codes), distances.argmin(1))


def _one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # as the trainer does: dropout differs, so the draw of a revival would too
    z, _ = corners()
    book, codes = Codebook(4, decay=0.9, revive_after=5).train(), torch.zeros(4, 2)
    for _ in range(3):
        book(z[..., rank::2], codes)
    save_file({"codes": codes, "usage": book.usage.data, "idle": book.idle.data}, f"{folder}/{rank}.safetensors")


@pytest.mark.slow
def test_two_processes_keep_one_codebook_that_sees_both_halves(tmp_path):
    torch.multiprocessing.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert first["usage"].sum().item() == pytest.approx(160 * (1 - 0.9**3), rel=1e-5)


@torch.no_grad()
def test_quantized_latents_are_decoded_as_diffusers_does():
    vae = build_vae(VaeModel(kind="vq", block_out_channels=[8, 16], norm_num_groups=4, codebook_size=8), 1, 16)
    z = torch.randn(2, vae.config.latent_channels, 8, 8)
    assert torch.equal(decode_quantized(vae, z), vae.decode(z, force_not_quantize=True).sample)
