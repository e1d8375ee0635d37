"""The bars that open the report on one's own images."""

from typing import Any

from ldm.evaluation.images.in_words import between
from ldm.evaluation.verdict import Bar, number_bar, share_bar

RARE = 0.01  # of real held-out images count as near copies: by that the limit is chosen


def bars(metrics: dict[str, Any]) -> list[Bar]:
    """Captions, one word, likeness, copies and autoencoder, as far as they were measured."""
    found = [
        words_bar("Do they show captions of training?", metrics["seen_words"]),
        words_bar("Do they show new captions?", metrics["words"]),
        one_word_bar(metrics["one_word"]),
        likeness_bar(metrics["likeness"]),
    ]
    copies = metrics["novelty"]["near_copies"] | {"ceiling": RARE}
    what = "of images are nearer to a training image than 99% of held-out images are"
    found += [share_bar("Are they new?", what, copies, higher=False), autoencoder_bar(metrics["autoencoder"])]
    return [bar for bar in found if bar is not None]


def words_bar(title: str, found: dict[str, Any] | None) -> Bar | None:
    """How often the own caption is nearer than others."""
    if found is None:
        return None
    what = f"of images are nearer to their own caption than to {found['candidates'] - 1} others"
    return share_bar(title, what, found)


def one_word_bar(found: dict[str, Any] | None) -> Bar | None:
    """How often an image follows a changed word."""
    what = "of images follow when one word of the caption changes"
    return None if found is None else share_bar("Do they follow a word?", what, found)


def likeness_bar(likeness: dict[str, Any] | None) -> Bar | None:
    """The kernel distance to held-out images, beside that of blurred and that of other real ones."""
    if likeness is None:
        return None
    kid = {name: likeness[name]["kid"]["value"] for name in ("blurred", "drawn", "training")}
    said = f"Kernel distance (KID) to held-out images: {between(likeness, 'kid')}."
    marks = [("blurred images", "chance", kid["blurred"]), ("this model", "model", kid["drawn"])]
    marks.append(("real images", "real", kid["training"]))
    return number_bar("Do they look real?", said, marks, "{:.3f}", higher=False)


def autoencoder_bar(vae: dict[str, Any]) -> Bar:
    """PSNR of reconstructions, beside the linear map that an autoencoder has to beat; nothing real is lost at all."""
    value, floor = vae["psnr"]["value"], vae["floor"]
    said = f"Encoded and decoded, held-out images keep a PSNR of {value:.1f} dB"
    marks = [("this model", "model", value)]
    if floor:
        said += f", {'more' if value > floor['psnr'] else 'no more'} than a linear map of the same size"
        marks.insert(0, ("a linear map", "chance", floor["psnr"]))
    return number_bar("What does the autoencoder keep?", f"{said}.", marks, "{:.1f} dB", higher=True)
