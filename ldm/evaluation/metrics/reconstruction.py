"""How much of an image an autoencoder keeps: PSNR and SSIM between originals and reconstructions.

Images with alpha are compared on black and on white (`ldm.utils.transparency`), and the mean of both is given.
"""

import numpy as np
import torch
from torch.nn.functional import conv2d

from ldm.models.latents import posterior
from ldm.utils.image_tensors import to_images, to_pixels
from ldm.utils.transparency import on_grounds

DENSE_FRACTION = 0.1  # 'the densest decile': the tenth of the images with the most ink


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """10 log10(255^2 / mean squared error) per image, in dB, for two uint8 arrays (n, h, w, c); float64 (n,).

    Equal images give 99, so that means stay finite.
    """
    a, b = _seen(a), _seen(b)
    error = ((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean(axis=tuple(range(1, a.ndim)))
    return np.where(error == 0, 99.0, 10 * np.log10(255**2 / np.maximum(error, 1e-6)))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity per image, float64 (n,), at most 1, for two uint8 arrays (n, h, w, c).

    Gaussian window of 11 pixels with sigma 1.5, averaged over all windows that lie inside the image and over
    channels, with the constants of the paper. Source: Wang et al. 2004, Image quality assessment, IEEE TIP 13(4).
    """
    a, b = _seen(a), _seen(b)
    n, channels = a.shape[0], a.shape[3]
    x, y = (torch.from_numpy(v.astype(np.float64)).permute(0, 3, 1, 2).flatten(0, 1)[:, None] for v in (a, b))
    position = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(position**2) / (2 * 1.5**2))
    line = line / line.sum()

    def window(v: torch.Tensor) -> torch.Tensor:
        return conv2d(conv2d(v, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    mean_x, mean_y = window(x), window(y)
    var_x, var_y, cov = window(x * x) - mean_x**2, window(y * y) - mean_y**2, window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean(dim=(1, 2, 3)).view(n, channels).mean(dim=1).numpy()


def _seen(images: np.ndarray) -> np.ndarray:
    """What is seen of images, uint8 (n, h, w, c): of alpha, both grounds, (n, h, w, 6)."""
    return np.concatenate(on_grounds(images), axis=-1)


@torch.no_grad()
def reconstruct(vae, images: np.ndarray, batch_size: int = 32) -> tuple[np.ndarray, torch.Tensor]:
    """Encode to the posterior's mean and decode again.

    Args:
        vae: a diffusers `AutoencoderKL` or `VQModel`, or anything with `encode(x).latent_dist` and `decode(z).sample`.
        images: uint8 (n, h, w, c).
    Returns: the reconstructions, uint8 of the same shape, and the latents between, float32 (n, c, h, w).
    """
    training = vae.training
    vae.eval()
    done, latents = [], []
    for start in range(0, len(images), batch_size):
        x = to_images(images[start : start + batch_size]).to(_place(vae))
        z = posterior(vae, x).mode()
        latents.append(z.float().cpu())
        done.append(to_pixels(vae.decode(z).sample))
    vae.train(training)
    return np.concatenate(done), torch.cat(latents)


def _place(vae) -> torch.Tensor:
    """A tensor with the device and dtype of an autoencoder's weights."""
    return next(iter(vae.state_dict().values()))
