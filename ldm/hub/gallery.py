"""The pictures of a model card: drawn by the exported model itself, one for each prompt, none picked out."""

from pathlib import Path

from ldm.pipelines.generation import generate_job
from ldm.pipelines.image_metadata import complete, empty_job, read_png, save_png
from ldm.pipelines.loading import load_pipeline

FOLDER = "gallery"
MOST = 8
SEED = 0


def draw_gallery(folder: Path, prompts: list[str]) -> None:
    """Draw pictures of the first prompts with the model's own settings into `folder`/gallery; "" = unconditional.

    Each carries what `ldm generate --from PICTURE -m MODEL` needs to draw it again.
    """
    pipeline = load_pipeline(folder, device="cpu")
    for i, prompt in enumerate(prompts[:MOST]):
        job = empty_job() | {"prompt": prompt or None, "grid": "1x1", "seed": SEED + i, "digest": pipeline.digest}
        complete(job, pipeline.defaults)
        (folder / FOLDER).mkdir(exist_ok=True)
        save_png(generate_job(pipeline, job, 1)[0], folder / FOLDER / f"{i}.png", job)


def pictures(folder: Path) -> list[dict[str, str]]:
    """The gallery as the card tells of it: {"prompt": text, "file": path in the folder}."""
    found = sorted((folder / FOLDER).glob("*.png"))
    return [{"prompt": read_png(file)["prompt"] or "", "file": f"{FOLDER}/{file.name}"} for file in found]
