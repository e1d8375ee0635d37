"""Plans for GPUs that are not here: the formulas of docs/scaling.md with numbers that a hand can follow."""

from dataclasses import replace

import pytest

from ldm.apps.cluster import Estimate, image_bytes, report
from ldm.apps.gpus import GPUS, Gpu
from ldm.cli import main as cli
from ldm.config.loading import load
from ldm.training.cost_estimate import CostCount
from ldm.utils.assets import shipped_configs

SMOKE = shipped_configs() / "smoke.yaml"
ROUND = Gpu(flops=1e12, memory=1e9, bandwidth=1e11, link=1e10)
MILLION = CostCount(exported=1_000_000, trained=1_000_000, flops=10**9, activations=10**6)


def test_a_million_parameters_on_four_round_gpus():
    ddp = Estimate(MILLION, ROUND, gpus=4, batch=400, local=100, efficiency=0.5)
    assert ddp.state == 20e6  # 4 bytes each of weights, gradients, two moments and the EMA
    assert ddp.activations == pytest.approx(100 * 1e6 * 1.4 * 0.7)
    assert ddp.compute == 0.2  # 400 GFLOP on four times 0.5 TFLOP/s
    assert ddp.exchange == pytest.approx(2 * 3 / 4 * 4e6 / 1e10)
    assert ddp.update == pytest.approx((28e6 + 12e6) / 1e11)
    assert ddp.step == pytest.approx(0.2 + 0.0004)
    fsdp = replace(ddp, sharded=True)
    assert fsdp.state == 5e6 and fsdp.activations == ddp.activations and fsdp.compute == ddp.compute
    assert fsdp.exchange == pytest.approx(1.5 * ddp.exchange) and fsdp.update == pytest.approx(ddp.update / 4)


def test_one_gpu_exchanges_nothing_and_little_work_waits_for_the_exchange():
    one = Estimate(MILLION, ROUND, gpus=1, batch=100, local=100, ema=False, half=False)
    assert one.exchange == 0 and one.state == 16e6 and one.update == pytest.approx(28e6 / 1e11)
    assert one.activations == pytest.approx(1.4e8)
    small = Estimate(replace(MILLION, operations=1000), ROUND, gpus=1, batch=2, local=1)
    assert small.compute == pytest.approx(2 * 1000 * 10e-6)  # twice a thousand launches, more than 10 ms of arithmetic
    slow = Estimate(MILLION, replace(ROUND, link=1e6), gpus=2, batch=2, local=1)
    assert slow.step == slow.exchange + slow.update > slow.compute


def test_an_image_costs_its_pixels_or_its_latents():
    ldm = load("ldm", SMOKE)
    pixels = ldm.data.channels * ldm.data.resolution**2
    vae = load("vae", SMOKE).model
    side = ldm.data.resolution // vae.factor
    assert image_bytes("clip", ldm, SMOKE) == image_bytes("vae", ldm, SMOKE) == pixels
    assert image_bytes("ldm", ldm, SMOKE) == 2 * 2 * vae.latent_channels * side**2
    assert image_bytes("ldm", ldm.model_copy(update={"cache_latents": False}), SMOKE) == pixels


def test_the_report_has_all_stages_and_their_sum():
    text = report(SMOKE, "h100", gpus=2, images=1_000_000, price=2.0)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [
        "2",
        "clip",
        "vae",
        "ldm",
        "cache",
        "all",
    ]
    batch = load("ldm", SMOKE).train.batch_size
    assert f"{-(-1_000_000 // batch):,} steps of {batch}, {batch // 2} at once" in text
    assert text.count("FSDP2") == 1 and "not measured" in lines[0] and "at 2 an hour" in lines[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "h1000"], f"--gpu h1000 is not known: give one of {', '.join(GPUS)}"),
        (["--gpu", "h100", "--gpus", "7", "--images", "3M"], "no multiple of 7: give another --gpus"),
        (["--gpu", "h100", "--minutes", "5"], "give either --minutes, to plan for this device, or --gpu"),
        ([], "give either --minutes, to plan for this device, or --gpu"),
        (["--gpu", "h100", "--images", "many"], "must be a number such as 50000, 50k or 3M, got 'many'"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", str(SMOKE), *words])
    assert end.value.code == 2 and said in capsys.readouterr().err
