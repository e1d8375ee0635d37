"""The look of the demo's page: its colours, each text with a contrast of at least 4.5 to its ground, and its CSS."""

# name -> (text, ground): WCAG 2.2 asks for a contrast of 4.5 (success criterion 1.4.3)
COLOURS = {
    "primary": ("#ffffff", "#b93a0c"),
    "primary hover": ("#ffffff", "#9a3009"),
    "tab": ("#b93a0c", "#ffffff"),
    "tab, dark": ("#fdba74", "#18181b"),
    "link": ("#0b57b0", "#ffffff"),
    "link, dark": ("#8ec5ff", "#18181b"),
    "note": ("#5b3a00", "#fff4d6"),
    "note, dark": ("#ffe2a0", "#3a2a08"),
    "error": ("#8f1414", "#ffeaea"),
    "error, dark": ("#ffc9c9", "#421111"),
}
SUBDUED = {  # texts of gradio's theme, which has them at a contrast of 1.9 in light
    "body_text_color_subdued": "*neutral_500",
    "body_text_color_subdued_dark": "*neutral_400",
    "input_placeholder_color": "*neutral_500",
    "input_placeholder_color_dark": "*neutral_400",
}
BUTTON, HOVER = COLOURS["primary"], COLOURS["primary hover"]
CSS = f"""
button.primary, .dark button.primary {{ background: {BUTTON[1]} !important; color: {BUTTON[0]} !important; }}
button.primary:hover, .dark button.primary:hover {{ background: {HOVER[1]} !important; }}
button[role="tab"].selected {{ color: {COLOURS["tab"][0]} !important; }}
.dark button[role="tab"].selected {{ color: {COLOURS["tab, dark"][0]} !important; }}
.pixels img, .pixels .thumbnail-item img {{ image-rendering: pixelated; }}
.pixels .previews {{ display: flex; gap: 4px; }}
.pixels .previews img {{ width: 25%; max-width: 160px; border: 1px solid #8884; }}
.pixels .grid-wrap {{ min-height: 0 !important; max-height: none !important; }}
.pixels:has(.previews) + .pixels {{ display: none; }}
.pixels .gallery-container:has(.preview) {{ min-height: 500px; }}
.pixels .thumbnail-item:has(.caption-label) img {{ padding-bottom: 28px; background: white; }}
.film {{ display: flex; flex-direction: column; gap: 8px; max-width: 256px; }}
.film img {{ width: 256px; image-rendering: pixelated; }}
.film img[hidden] {{ display: none; }}
.wide .thumbnail-item {{ aspect-ratio: auto !important; }}
.curves svg {{ max-width: 100%; height: auto; }}
.state p {{ margin: 4px 0; overflow-wrap: anywhere; }}
.note, .error {{ padding: 6px 10px; border-radius: 6px; }}
.note {{ color: {COLOURS["note"][0]}; background: {COLOURS["note"][1]}; }}
.dark .note {{ color: {COLOURS["note, dark"][0]}; background: {COLOURS["note, dark"][1]}; }}
.error {{ color: {COLOURS["error"][0]}; background: {COLOURS["error"][1]}; }}
.dark .error {{ color: {COLOURS["error, dark"][0]}; background: {COLOURS["error, dark"][1]}; }}
.links a {{ color: {COLOURS["link"][0]}; text-decoration: underline; }}
.dark .links a {{ color: {COLOURS["link, dark"][0]}; }}
.links button {{ text-decoration: underline; cursor: pointer; padding: 4px; }}
.log pre {{ max-height: 320px; overflow: auto; white-space: pre-wrap; font-size: 12px; }}
.chip {{ border-radius: 999px !important; }}
@media (max-width: 640px) {{
    .pixels .grid-container {{ grid-template-columns: 1fr 1fr !important; }}
    .wide .grid-container {{ grid-template-columns: 1fr !important; }}
}}
footer {{ display: none !important; }}
"""
TRANSPARENT = """
.pixels img, .pixels .thumbnail-item:has(.caption-label) img, .film img {
    background: repeating-conic-gradient(#808080 0 25%, #b0b0b0 0 50%) 0 0 / 16px 16px;
}
"""


def contrast(text: str, ground: str) -> float:
    """The contrast ratio of two colours '#rrggbb', 1 to 21, by WCAG 2.2."""
    light, dark = sorted((_luminance(text), _luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    """Relative luminance of sRGB, 0 to 1."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
