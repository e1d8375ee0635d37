"""The numbers of an evaluation as a card tells them: a sentence each, with what is good and what to compare with."""

from typing import Any, NamedTuple


class Phrase(NamedTuple):
    """How a metric is said.

    `text` has a {} for the value; `higher`: whether a higher value is better; `form`: of a number that is no fraction;
    `chance`, `real`: what the references "floor" and "ceiling" are; `beside`: a fixed reference.
    """

    text: str
    higher: bool | None = True
    form: str = "{:.1%}"
    chance: str = "chance"
    real: str = "real images"
    beside: str = ""


UNSEEN = "where the prompt describes a character never seen in training"
NAMED = "where the prompt names both components of such a character"
PAIR = "in pairs of layout and radical that training never showed"
GLYPHS, OTHERS = "real glyphs", "other real glyphs have about 0"
KNOWN = {
    "layout": Phrase("{} of glyphs have the layout, where the prompt names a layout alone", real=GLYPHS),
    "radical": Phrase("{} of glyphs have the radical, where the prompt names a radical alone", real=GLYPHS),
    "pair_layout": Phrase(f"{{}} of glyphs have the layout {PAIR}", real=GLYPHS),
    "pair_radical": Phrase(f"{{}} of glyphs have the radical {PAIR}", real=GLYPHS),
    "pair_both": Phrase(f"{{}} of glyphs have both {PAIR}", real=GLYPHS),
    "later_radical": Phrase("{} of glyphs have the radical in a second list of such pairs", real=GLYPHS),
    "later_both": Phrase("{} of glyphs have layout and radical in a second list of such pairs", real=GLYPHS),
    "place_both": Phrase("{} of glyphs have a component where training never named it", real=GLYPHS),
    "component_seen_both": Phrase("{} of glyphs have two components seen together in the other order", real=GLYPHS),
    "component_unseen_both": Phrase("{} of glyphs have two components never seen together", real=GLYPHS),
    "character_layout": Phrase(f"{{}} of glyphs have the layout, {UNSEEN}", real=GLYPHS),
    "character_radical": Phrase(f"{{}} of glyphs have the radical, {UNSEEN}", real=GLYPHS),
    "character_components_f1": Phrase(f"{{}} is the F1 score of the components found, {UNSEEN}", real=GLYPHS),
    "character_strokes_error": Phrase("The strokes are {} off on average", False, "{:.2f}", real=GLYPHS),
    "character_readable": Phrase(f"{{}} of glyphs are read as some character by an OCR, {UNSEEN}", real=GLYPHS),
    "character_read": Phrase(f"{{}} of glyphs are read as the very character by an OCR, {UNSEEN}", real=GLYPHS),
    "named_both": Phrase(f"{{}} of glyphs have layout and all components, {NAMED}", real=GLYPHS),
    "named_components_f1": Phrase(f"{{}} is the F1 score of the components found, {NAMED}", real=GLYPHS),
    "named_strokes_error": Phrase(f"The strokes are {{}} off on average, {NAMED}", False, "{:.2f}", real=GLYPHS),
    "named_readable": Phrase(f"{{}} of glyphs are read as some character by an OCR, {NAMED}", real=GLYPHS),
    "named_read": Phrase(f"{{}} of glyphs are read as the very character by an OCR, {NAMED}", real=GLYPHS),
    "kid_glyph encoder": Phrase(
        "The kernel distance (KID) to real glyphs is {} by the glyph classifier", False, "{:.2f}", beside=OTHERS
    ),
    "kid_OCR": Phrase("The kernel distance (KID) to real glyphs is {} by the OCR", False, "{:.2f}", beside=OTHERS),
    "copies": Phrase("{} of glyphs are copies of training glyphs", False),
    "new_and_well_formed": Phrase("{} of glyphs agree with the prompt and are neither copies nor existing characters"),
    "vae_read_the_same": Phrase("{} of real glyphs are read the same after encoding and decoding"),
    "seen_caption_first": Phrase("{} of images of training captions are nearer to theirs than to 99 others, by a CLIP"),
    "own_caption_first": Phrase("{} of images of new captions are nearer to theirs than to 99 others, by a CLIP"),
    "follows_one_word": Phrase("{} of images follow when one word of the caption changes, by a CLIP"),
    "fd": Phrase("The Fréchet distance to held-out images is {}", False, "{:.1f}"),
    "kid": Phrase("The kernel distance (KID) to held-out images is {}", False, "{:.3f}"),
    "coverage": Phrase("The coverage is {}: held-out images with a generated one among their neighbours"),
    "near_copies": Phrase(
        "{} of images are nearer to a training image than 99% of held-out ones", False, beside="real images 1%"
    ),
    "psnr": Phrase(
        "Held-out images keep a PSNR of {} when encoded and decoded",
        form="{:.1f} dB",
        chance="a linear map of the same size",
    ),
    "ssim": Phrase("Held-out images keep an SSIM of {} when encoded and decoded", form="{:.3f}", beside="1 is perfect"),
    "digit": Phrase("{} of images show the digit that the prompt names"),
    "ink": Phrase("{} of images have the colour that the prompt names"),
    "pairs_never_seen": Phrase("{} of images have digit and colour in pairs that training never showed"),
    "real_digit": Phrase("{} of real digits are read correctly by the classifier: no model can score more"),
    "real_decoded_digit": Phrase("{} of real digits are read correctly after encoding and decoding"),
}
REFERENCE = "_of_real"  # ends the name of a metric that real images have: the reference of the one without it


def rows(metrics: dict[str, Any]) -> dict[str, str]:
    """Name -> sentence, of the metrics' "summary" (or of all of them, when there is none).

    A metric is a number, or {"share" or "value": x, "interval": [low, high]} and perhaps "n", "ceiling" (real images)
    and "floor" (chance), or within a summary a dict of metrics; anything else is left out.
    """
    found = {name: metric for name, metric in numbers(metrics).items() if is_metric(metric)}
    references = {name for name in found if name.endswith(REFERENCE) and name.removesuffix(REFERENCE) in found}
    shown = [name for name in found if name not in references]
    return {name: sentence(name, found[name], found.get(name + REFERENCE)) for name in shown}


def sentence(name: str, metric: Any, real: Any = None) -> str:
    """'95.4% of glyphs have the layout (higher is better; real glyphs 96.4%, chance 51.4%; 95% interval ...).'"""
    phrase = KNOWN.get(name) or _unknown(name, metric)
    parts = metric if isinstance(metric, dict) else {}
    better = {True: "higher is better", False: "lower is better", None: ""}[phrase.higher]
    top = value_of(real) if real is not None else parts.get("ceiling")
    references = [(phrase.real, top), (phrase.chance, parts.get("floor"))]
    beside = [f"{what} {phrase.form.format(value)}" for what, value in references if value is not None]
    ends = " to ".join(map(phrase.form.format, parts.get("interval") or ()))
    interval = [f"95% interval {ends}"] if ends else []
    count = [f"n = {parts['n']}"] if parts.get("n") else []
    notes = "; ".join(filter(None, [better, phrase.beside, ", ".join(beside), ", ".join([*interval, *count])]))
    said = phrase.text.replace("{}", f"**{phrase.form.format(value_of(metric))}**", 1)
    return f"{said} ({notes})." if notes else f"{said}."


def _unknown(name: str, metric: Any) -> Phrase:
    """A metric of somebody else: its name, and its value as a percentage where it has an interval within [0, 1]."""
    interval = (metric["interval"] or []) if isinstance(metric, dict) else []
    fraction = interval and 0 <= interval[0] <= interval[1] <= 1
    return Phrase(f"{name.replace('_', ' ')}: {{}}", None, "{:.1%}" if fraction else "{:.4g}")


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers that are quoted, by name; {"kid": {"OCR": 1}} is "kid_OCR"."""
    if "summary" not in metrics:
        return metrics
    flat: dict[str, Any] = {}
    for name, value in metrics["summary"].items():
        parts = value if isinstance(value, dict) and "interval" not in value else {"": value}
        flat |= {f"{name}_{part}".strip("_"): number for part, number in parts.items()}
    return flat


def value_of(metric: Any) -> Any:
    """The number of a metric."""
    return metric.get("share", metric.get("value")) if isinstance(metric, dict) and "interval" in metric else metric


def is_metric(metric: Any) -> bool:
    """Whether it has a number, and if it is a dict an interval."""
    value = value_of(metric)
    return not isinstance(value, bool) and isinstance(value, int | float)
