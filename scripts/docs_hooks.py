"""For mkdocs: formulas between $...$ and $$...$$ become MathML while the pages are built.

Browsers render MathML, so the pages need no script and no network. Code, fenced or between backticks, is unchanged. A
formula that the converter does not know stops the build.
"""

import re
from pathlib import Path
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.structure.files import File

FORMULA = r"(?P<mark>\$\$?)(?P<tex>(?:[^$\\]|\\.)+?)(?P=mark)"
FUNCTION = re.compile("(<mi>(?:ln|log|exp|cos|sin|tan)</mi>)(?!<mo)")  # latex2mathml omits the space after them
PRIORITY = 185  # below `code` at 190, above \escapes at 180: backslashes reach us unchanged


def to_mathml(tex: str, display: bool = False) -> str:
    """MathML of one formula; wide ones can be scrolled. Raises: ValueError for what cannot be converted."""
    try:
        mathml = convert(tex.strip(), display="block" if display else "inline")
    except Exception as error:  # the library has a class for each type of error
        raise ValueError(f"formula {tex.strip()!r}: {type(error).__name__} {error}") from error
    if "\\" in mathml or "<mi>&</mi>" in mathml:
        raise ValueError(f"formula {tex.strip()!r} uses a command that latex2mathml does not know")
    mathml = mathml.replace("<mover>", '<mover accent="true">')  # hats and tildes, else set small and high
    mathml = FUNCTION.sub(r'<mrow>\1<mspace width="0.167em" /></mrow>', mathml)
    return f'<div class="formula">{mathml}</div>' if display else mathml


class Formulas(InlineProcessor):
    """$...$ within a paragraph, $$...$$ as one."""

    def handleMatch(self, m: re.Match, data: str) -> tuple[Element | str, int, int]:
        html = to_mathml(m["tex"], display=m["mark"] == "$$")
        return self.md.htmlStash.store(html), m.start(0), m.end(0)


class FormulaExtension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(Formulas(FORMULA, md), "formulas", PRIORITY)


def on_config(config):
    """Called by mkdocs once the settings are read."""
    config.markdown_extensions.append(FormulaExtension())
    return config


def on_files(files, config):
    """The included models' images are outside docs/; pages may show them all the same."""
    root = Path(config.docs_dir).parent
    for image in sorted((root / "models").glob("*/*.png")):
        files.append(File.generated(config, image.relative_to(root).as_posix(), abs_src_path=str(image)))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """../../models is right in the repository; in the site it is one level less."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # its tab has only this page
    return re.sub(r"\]\(\.\./((?:\.\./)*models/)", r"](\1", markdown)
