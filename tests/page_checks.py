"""What every page that people open is held to: names, contrast, width. And where the Chromium is that opens it."""

import shutil

import pytest

# texts whose contrast with the ground behind them is below 4.5 by the formula of WCAG 2; disabled controls are exempt
FAINT = """() => {
  const parse = (colour) => {
    const [r, g, b, alpha = 1] = colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, alpha];
  };
  const over = ([r, g, b, alpha], under) => [r, g, b].map((value, i) => value * alpha + under[i] * (1 - alpha));
  const linear = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (node) => {
    if (!node) return [255, 255, 255];
    const own = parse(getComputedStyle(node).backgroundColor);
    return own[3] === 1 ? own : over(own, ground(node.parentElement));
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    const text = node.matches("textarea, input:not([type=radio], [type=checkbox], [type=range])") && node.value;
    const own = text || [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    const seen = node.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && node.offsetWidth > 1;
    if (!own || node.disabled || !seen) continue;
    const under = ground(node), colour = over(parse(getComputedStyle(node).color), under);
    const [a, b] = [light(colour), light(under)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)} ${node.outerHTML.slice(0, 80)}`);
  }
  return found;
}"""
# what can be pressed or filled in and has no name that a screen reader could say
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, summary, a, img, [role=button]")]
  .filter((node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest("[aria-hidden=true]"))
  .filter((node) => !(node.getAttribute("aria-label") || node.getAttribute("aria-labelledby") || node.title ||
    node.labels?.length || node.alt || node.textContent.trim() || node.querySelector("img[alt]") ||
    node.matches("button[aria-label] img")))
  .map((node) => node.outerHTML.slice(0, 80))"""
TOO_WIDE = "document.documentElement.scrollWidth > innerWidth"


def faults(page) -> dict:
    """What a page does not hold of the three: {} if it holds all."""
    found = {name: page.evaluate(code) for name, code in (("faint", FAINT), ("nameless", NAMELESS), ("wide", TOO_WIDE))}
    return {name: each for name, each in found.items() if each}


def chromium() -> str:
    """The program; a test that has none is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium is installed")
    return found
