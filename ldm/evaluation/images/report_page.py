"""The numbers of `ldm evaluate` of one's own pictures as one page; see `ldm.evaluation.html`."""

from pathlib import Path

from ldm.evaluation.html import heading, note, page, percent, picture, table

DISTANCES = ("fd", "kid", "precision", "recall", "density", "coverage")


def report_page(metrics: dict, output: Path) -> str:
    """The whole page; pictures are the PNG files that lie in `output`."""
    parts = [
        *(note(text) for text in metrics["notes"]),
        heading("Words"),
        *_words(metrics["words"]),
        picture(output / "drawn.png", "Drawn, and below each the held-out picture that its caption is of"),
        *_likeness(metrics["likeness"], metrics["features"]["name"]),
        heading("New?"),
        *_novelty(metrics["novelty"], metrics["features"]["name"]),
        picture(output / "nearest.png", "The nearest to training pictures, and below each the one it is nearest to"),
        heading("Autoencoder"),
        _autoencoder(metrics["autoencoder"]),
        picture(output / "reconstructions.png", "Held-out pictures, and below each its reconstruction"),
    ]
    return page(f"Evaluation of {metrics['model']['source']}", parts)


def _words(found: dict | None) -> list[str]:
    if not found:
        return []
    heads = ["own caption first", "95%", "ceiling: real pictures", "floor: dealt anew", "candidates", "pictures"]
    shares = [percent(found[name]) for name in ("ceiling", "floor")]
    return [
        note(
            "How often a picture's own caption is nearer to it than captions of other held-out pictures (R-precision)."
        ),
        table(heads, [[*_share(found), *shares, found["candidates"], found["n"]]]),
    ]


def _likeness(found: dict | None, eye: str) -> list[str]:
    if not found:
        return []
    rows = [
        [f"{name} pictures", *(f"{one[d]['value']:.3g} ± {one[d]['error']:.1g}" for d in DISTANCES)]
        for name, one in found.items()
    ]
    return [
        heading("Likeness to held-out pictures"),
        note("Training pictures show what real ones get. FD and KID: less is better, the others: more."),
        table([f"by {eye}", *(d.upper() if len(d) < 4 else d for d in DISTANCES)], rows),
    ]


def _novelty(found: dict, eye: str) -> list[str]:
    heads = ["near copies", "95%", "median distance", "of held-out pictures"]
    medians = [f"{found[name]:.3g}" for name in ("median_drawn", "median_held_out")]
    return [
        note(f"A near copy is nearer to a training picture, by {eye}, than 99% of held-out pictures are."),
        table(heads, [[*_share(found["near_copies"]), *medians]]),
    ]


def _autoencoder(found: dict) -> str:
    rows = [
        [name.upper(), f"{found[name]['value']:.4g}", " to ".join(f"{x:.4g}" for x in found[name]["interval"])]
        for name in ("psnr", "ssim")
    ]
    return table(["held-out pictures", "mean", "95%"], rows)


def _share(found: dict) -> list[str]:
    return [percent(found["share"]), " to ".join(percent(bound) for bound in found["interval"])]
