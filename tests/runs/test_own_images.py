"""One's own folder of pictures through the same commands, with captions and without."""

from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, forked, train
from PIL import Image


def photographs(folder: Path, count: int) -> None:
    """Pictures with colour, gradients and noise, each with a .txt caption."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        colour, (h, w) = rng.integers(0, 2), rng.integers(40, 90, 2)
        y, x = np.mgrid[0:h, 0:w]
        disc = ((y - h / 2) ** 2 + (x - w / 2) ** 2 < (min(h, w) / 3) ** 2)[..., None]
        ground = 120 + 60 * np.sin(x / 9 + rng.random() * 6)[..., None] + rng.normal(0, 8, (h, w, 3))
        picture = np.where(disc, [[200, 40, 40], [40, 60, 200]][colour], ground)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.jpg", quality=90)
        (folder / f"{i:03d}.txt").write_text(f"a {['red', 'blue'][colour]} disc on waves")


@pytest.mark.slow  # test_end_to_end.py has the same commands, and the test below a folder of one's own
def test_ones_own_folder_trains_and_draws_through_the_same_commands(tmp_path):
    photographs(tmp_path / "photos", 200)
    own = ["--data.source", tmp_path / "photos", "--data.channels", 3, "--name", "mine", "--train.num_steps", 12]
    for part in ("clip", "vae", "ldm"):
        extra = ["--sampling.prompts", "a red disc on waves"] if part == "ldm" else []
        train(part, ROOT / "configs" / "smoke.yaml", tmp_path, *own, *extra, processes=0)
    forked(None, "export", "runs/mine/ldm", "-o", "mine", cwd=tmp_path)
    forked(None, "generate", "a red disc on waves", "-m", "mine", "-o", "disc.png", cwd=tmp_path)
    picture = Image.open(tmp_path / "disc.png")
    assert picture.mode == "RGB" and np.asarray(picture).std() > 0


def test_pictures_without_captions_train_unconditionally(tmp_path):
    photographs(tmp_path / "photos", 24)
    for caption in (tmp_path / "photos").glob("*.txt"):
        caption.unlink()
    own = ["--data.source", tmp_path / "photos", "--data.channels", 3, "--name", "plain", "--train.num_steps", 4]
    config = ROOT / "configs" / "smoke.yaml"
    assert "no captions" in forked(ROOT / "train_clip.py", config, *own, cwd=tmp_path, code=2)
    train("vae", config, tmp_path, *own, processes=0)
    train("ldm", config, tmp_path, *own, "--text.source", "none", "--sampling.prompts", "", processes=0)
    forked(None, "generate", "-m", "runs/plain/ldm", "-o", "any.png", cwd=tmp_path)
    assert Image.open(tmp_path / "any.png").mode == "RGB"
