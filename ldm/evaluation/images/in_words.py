"""The report on one's own images in words: what the terminal prints, and the first lines of the page."""

from typing import Any

from ldm.evaluation.autoencoder_quality import complaints, facts
from ldm.evaluation.html import percent, plus_minus
from ldm.evaluation.verdict import FEW, standing_of

MEASURES = {"fd": "FD", "kid": "KID", "precision": "precision", "recall": "recall", "coverage": "coverage"}
REFERENCES = {"blurred": "blurred real", "other_captions": "few captions"}  # real images that should do badly


def words_line(name: str, found: dict[str, Any] | None) -> str:
    """R-precision with its interval, real images and chance level."""
    if found is None:
        return f"{name:13} not measured (see below)"
    text = (
        f"{percent(found['share'])} of {found['n']} images are nearer to their own caption than to "
        f"{found['candidates'] - 1} others (95%: {percent(found['interval'])}; real images "
        f"{percent(found['ceiling'])}, chance {percent(found['floor'])})"
    )
    return f"{name:13} {text}: {standing_of(found)}"


def one_word_line(found: dict[str, Any] | None) -> str:
    """The one-word test likewise, and how much of the image a word changes."""
    if found is None:
        return "one word      not measured: no caption differs from another by one word between the same neighbours"
    top = "no real images to compare with" if found["ceiling"] is None else f"real images {percent(found['ceiling'])}"
    text = (
        f"{percent(found['share'])} of {found['n']} images follow when one word of the caption changes (95%: "
        f"{percent(found['interval'])}; {top}, chance 50%); {percent(found['pixels'])} of the pixels change "
        f"({percent(found['pixels_of_others'])} between images of two captions)"
    )
    return f"one word      {text}: {standing_of(found)}"


def likeness_lines(likeness: dict[str, Any] | None, count: int) -> list[str]:
    """A table: each measure of generated images beside real ones, and beside those that should do badly."""
    if likeness is None:
        small = f"n = {count} is too small, {FEW} are needed (--samples)" if count < FEW else "features do not differ"
        return [f"likeness      no verdict on FD, KID, precision, recall and coverage: {small}"]
    worse = [name for name in REFERENCES if name in likeness]
    heads = ["likeness", "generated", "real images", *(REFERENCES[name] for name in worse)]
    rows = [[*heads, ""]]
    for name, title in MEASURES.items():
        cells = [plus_minus(likeness[column][name], name) for column in ("drawn", "training", *worse)]
        rows.append([title, *cells, between(likeness, name)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = max(widths[0], 12)
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def between(likeness: dict[str, Any], name: str) -> str:
    """Where generated images stand by a measure, between blurred real images and real ones.

    A measure that does not tell those two apart says nothing: their difference must be twice its standard error.
    """
    ours, top, bottom = (likeness[column][name] for column in ("drawn", "training", "blurred"))
    apart, error = top["value"] - bottom["value"], ((top["error"] or 0) ** 2 + (bottom["error"] or 0) ** 2) ** 0.5
    better = -1 if name in ("fd", "kid") else 1
    if apart * better <= 2 * error:
        return "says nothing: it cannot tell blurred images from real ones"
    way = (ours["value"] - bottom["value"]) / apart
    return "no better than blurred real images" if way <= 0 else f"{min(way, 1):.0%} of the way from blurred to real"


def lines(metrics: dict[str, Any]) -> list[str]:
    """All of it; the first three lines are about the words."""
    vae, copies = metrics["autoencoder"], metrics["novelty"]["near_copies"]
    value = vae["psnr"]["value"]
    found = [words_line("seen caption", metrics["seen_words"]), words_line("new caption", metrics["words"])]
    found.append(one_word_line(metrics["one_word"]))
    found += likeness_lines(metrics["likeness"], metrics["settings"]["samples"])
    found.append(
        f"near copies   {percent(copies['share'])} of {copies['n']} images are nearer to a training image than 99% of "
        f"held-out ones (95%: {percent(copies['interval'])})"
    )
    said = "; ".join(filter(None, [f"PSNR {value:.1f} dB, SSIM {vae['ssim']['value']:.3f}", facts(vae)]))
    found += [f"autoencoder   {said}", *(f"{'':14}{each.text} -> {each.advice}" for each in complaints(value, vae))]
    return [*found, against_line(metrics["against"])] if "against" in metrics else found


def against_line(found: dict[str, Any]) -> str:
    """Both models' numbers on the same captions and seeds, and the verdicts."""
    said = [
        f"{name.replace('_', ' ')} {percent(each['b'])} here, {percent(each['a'])} there: {each['verdict']}"
        for measures in found["sections"].values()
        for name, each in measures.items()
    ]
    return f"against       {found['a']['source']} (A; this is B): {'; '.join(said) or 'nothing to compare'}"
