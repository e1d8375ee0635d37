"""The same noise through a teacher of many guided steps and its student of four."""

import numpy as np

from ldm.apps.figures.figure import Drawing, Setting
from ldm.apps.figures.inputs import model
from ldm.apps.figures.plot_style import grey, strip
from ldm.pipelines.loading import load_pipeline
from ldm.utils.assets import shipped_model

PROMPT = "horizontal stacked glyph with the water radical"
SEEDS, FEW = 8, 4


def student(setting: Setting) -> Drawing:
    """A row for each way to sample, a column for each noise, and how far each row is from the teacher's own steps.

    A model without a student of its size among those that ship is shown by its own few steps.
    """
    teacher = model(setting)
    steps, scale = teacher.defaults["num_inference_steps"], teacher.defaults["guidance_scale"]
    ways = {
        "teacher": (teacher, steps, scale),
        "teacher,\nfew steps": (teacher, FEW, scale),
        "teacher,\nunguided": (teacher, FEW, 1.0),
    }
    few = load_pipeline(shipped_model("glyphs-fast")) if setting.model is None else None
    if few and few.image_shape == teacher.image_shape:
        ways["student"] = (few, FEW, 1.0)
    rows, numbers, first = [], {"prompt": PROMPT}, None
    for name, (pipeline, steps, scale) in ways.items():
        options = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "np"}
        seen: list[int] = []  # images of each forward pass; a guided one has every image twice
        hook = pipeline.unet.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(len(inputs[0])))
        images = pipeline(PROMPT, num_images_per_prompt=2 if setting.quick else SEEDS, seed=0, **options).images
        hook.remove()
        first = images if first is None else first
        calls = sum(seen) // len(images)
        apart = float(np.sqrt(np.mean((images - first) ** 2)))
        numbers[name.replace("\n", " ")] = f"{calls} calls, root mean square difference from the first row {apart:.3f}"
        rows.append([grey(image[..., 0], 0, 1) for image in images])
    return Drawing(strip(rows, tuple(ways), [f"seed {i}" for i in range(len(rows[0]))], left=110), numbers)
