"""What a model generates, in one sentence and one line of facts, from what its folder records."""

from typing import Any

KINDS = {1: "grey", 3: "colour", 4: "colour and transparent"}
KNOWN = {
    "glyphs": "invented Chinese characters, from a layout, a radical, a meaning or a number of strokes",
    "digits": "coloured digits, from their number, colour, thickness, slant and background",
}


def sentence(config: dict, shape: tuple[int, int, int], examples: list[str]) -> str:
    """'Generates colour images of 64 x 64 pixels from prompts such as “a tulip emoji”.'

    Args:
        config: the settings of the training, {} where they are unknown.
        shape: (channels, height, width) of an image.
        examples: prompts of its training.
    """
    channels, height, width = shape
    size = f"{width} x {height} pixels"
    source = config.get("data", {}).get("source")
    if isinstance(source, str) and source in KNOWN:
        return f"Generates {KNOWN[source]} ({size})."
    images = f"Generates {KINDS.get(channels, 'colour')} images of {size}"
    if not examples:
        return f"{images}, like those it was trained on."
    return f"{images} from prompts such as {' or '.join(f'“{prompt}”' for prompt in examples[:2])}."


def facts(model: dict[str, Any]) -> str:
    """'Trained on glyphs, 85 minutes. Licence: apache-2.0.' from the content of ldm.json; what is unknown is left out."""
    training = model.get("training")
    training = training if isinstance(training, dict) else {}
    data, runs = training.get("data"), training.get("runs")
    spent = [run.get("minutes") for run in runs.values() if isinstance(run, dict)] if isinstance(runs, dict) else []
    minutes = sum(each for each in spent if isinstance(each, int | float))
    trained = [f"on {data}"] if isinstance(data, str) else []
    trained += [f"{minutes:.0f} minutes"] if minutes else []
    found = [f"Trained {', '.join(trained)}."] if trained else []
    licence = model.get("license")
    return " ".join(found + ([f"Licence: {licence}."] if isinstance(licence, str) else []))
