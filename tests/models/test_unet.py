"""The U-Net is stock, hears its text, and the choice of attention changes nothing but speed."""

import pytest
import torch

from ldm.config.settings import UNetModel
from ldm.models.conditioning import CONDITIONINGS
from ldm.models.unet import build_unet, choose_attention
from ldm.utils.errors import UserError

SMALL = {"block_out_channels": [16, 32], "norm_num_groups": 8, "heads": 2}


def unet(**changes):
    torch.manual_seed(0)
    return build_unet(UNetModel(**(SMALL | {"attention_levels": [1]} | changes)), 4, 8, 24).eval()


def inputs():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 4, 8, 8), (2,), (2, 6, 24)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("mid", [True, False])
def test_text_reaches_the_output(pooled, mid):
    network = unet(pooled_text=pooled, mid_block=mid)
    x, t, text = inputs()
    with torch.no_grad():
        plain, other = network(x, t, text).sample, network(x, t, text.flip(0)).sample
    assert plain.shape == x.shape and (plain - other).abs().max() > 1e-4


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_text_is_heard_however_it_enters(conditioning, tmp_path):
    network = unet(conditioning=conditioning)
    choose_attention(network, "auto", torch.device("cpu"), half=True)
    x, t, text = inputs()
    with torch.no_grad():
        plain, other = network(x, t, text).sample, network(x, t, text.flip(0)).sample
        assert plain.shape == x.shape and (plain - other).abs().max() > 1e-4
        network.save_pretrained(tmp_path)
        torch.testing.assert_close(
            type(network).from_pretrained(tmp_path)(x, t, text).sample, plain, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("conditioning", ["modulation", "concatenation"])
def test_pooled_text_does_not_depend_on_the_batch(conditioning):
    network = unet(conditioning=conditioning)
    x, t, text = inputs()
    with torch.no_grad():
        torch.testing.assert_close(network(x[:1], t[:1], text[:1]).sample, network(x, t, text).sample[:1])


def test_only_cross_attention_looks_at_single_words():
    names = {c: " ".join(n for n, _ in unet(conditioning=c).named_parameters()) for c in CONDITIONINGS}
    assert [c for c, found in names.items() if "attn2" in found] == ["cross_attention"]  # attn2: diffusers' name
    assert all("attn" in found or "attentions" in found for found in names.values())  # all of them see far


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_a_learned_variance_doubles_the_channels(conditioning):
    x, t, text = inputs()
    changes = SMALL | {"attention_levels": [1], "conditioning": conditioning}
    network = build_unet(UNetModel(**changes), 4, 8, 24, learned_variance=True)
    assert network(x, t, text).sample.shape == (2, 8, 8, 8)


def test_pooled_text_is_heard_without_any_cross_attention():
    network = unet(attention_levels=[], mid_block=False)
    x, t, text = inputs()
    with torch.no_grad():
        assert (network(x, t, text).sample - network(x, t, text.flip(0)).sample).abs().max() > 1e-4


def test_attention_kinds_agree():
    network, (x, t, text) = unet(), inputs()
    with torch.no_grad():
        sdpa = network(x, t, text).sample
        assert choose_attention(network, "auto", torch.device("cpu"), half=True) == "matmul"
        assert choose_attention(network, "auto", torch.device("cpu"), half=False) == "sdpa"
        torch.testing.assert_close(network(x, t, text).sample, sdpa, atol=1e-5, rtol=1e-4)


def test_xformers_without_cuda_falls_back_with_one_line(caplog):
    assert choose_attention(unet(), "xformers", torch.device("cpu"), half=True) == "matmul"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "xformers" in caplog.text


def test_any_width_of_text_can_be_pooled():
    network = build_unet(UNetModel(**(SMALL | {"attention_levels": [1]})), 4, 8, 30)
    assert network(*inputs()[:2], torch.randn(2, 6, 30)).sample.shape == (2, 4, 8, 8)


def test_heads_are_a_number_of_heads():
    assert unet(heads=4).down_blocks[1].attentions[0].transformer_blocks[0].attn1.heads == 4


def test_latents_that_cannot_be_halved_are_refused():
    with pytest.raises(UserError, match="cannot be halved"):
        build_unet(UNetModel(**(SMALL | {"attention_levels": []})), 4, 9, 24)
