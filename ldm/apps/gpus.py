"""GPUs as their makers describe them, and what is assumed of all of them. Nothing heavy is imported for it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker describes it.

    Attributes:
        flops: dense bf16 FLOP/s with fp32 sums, at most.
        memory: bytes.
        bandwidth: of its memory, bytes/s.
        link: to the other GPUs of its machine, bytes/s in one direction: NVLink, or PCIe 4.0 x 16.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float


GPUS = {
    "l4": Gpu(121e12, 24e9, 0.30e12, 32e9),
    "rtx4090": Gpu(165e12, 24e9, 1.01e12, 32e9),
    "l40s": Gpu(362e12, 48e9, 0.86e12, 32e9),
    "a100": Gpu(312e12, 80e9, 2.04e12, 300e9),
    "h100": Gpu(989e12, 80e9, 3.35e12, 450e9),
    "h200": Gpu(989e12, 141e9, 4.8e12, 450e9),
    "b200": Gpu(2250e12, 180e9, 7.7e12, 900e9),
}
EFFICIENCY = 0.2  # of the peak; small convolutions reach less than large matrix products
LAUNCH = 10e-6  # seconds for the CPU to launch an operation from Python, about; small networks wait for that
