"""For mkdocs: formulas as MathML, figures with captions, links to papers and sources, pages of the repository's root.

Formulas between $...$ and $$...$$ become MathML while the pages are built. Browsers render it with the font in
docs/assets/, so the pages need no script and no network. Code, fenced or between backticks, is unchanged. A formula
that the converter does not know stops the build.
"""

import posixpath
import re
from pathlib import Path
from xml.etree.ElementTree import Element

import yaml
from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor
from mkdocs.structure.files import File, InclusionLevel

FORMULA = r"(?P<mark>\$\$?)(?P<tex>(?:[^$\\]|\\.)+?)(?P=mark)"
FUNCTION = re.compile("(<mi>(?:ln|log|exp|cos|sin|tan)</mi>)(?!<mo)")  # latex2mathml omits the space after them
OPERATOR = re.compile(r"<mi>(&#x0(?:2032|223C|00B1|27E8|27E9);)</mi>")  # <mi> would have no space around them
UPRIGHT = re.compile(r"<mi>(&#x000[4-7][0-9A-F];)</mi>")  # \mathrm of a single letter, which <mi> would slant
PRIORITY = 185  # below `code` at 190, above \escapes at 180: backslashes reach us unchanged
ROOT_PAGES = {  # file -> its page
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "THIRD_PARTY.md": "third-party.md",
}
NAMED = re.compile(r"`([\w./-]+\.(?:py|yaml|js|toml|txt))`")  # a source file that a page names
LANGUAGES = {".py": "python", ".yaml": "yaml", ".js": "javascript", ".toml": "toml"}
IMAGES = re.compile(r"<p>((?:\s*<img [^>]*/?>)+)\s*</p>")
LINKED = re.compile(  # what becomes a link, after what is one or may hold none
    r"<a\b.*?</a>|<pre\b.*?</pre>|<code>(?P<path>[\w./-]+)</code>|<[^>]*>|arXiv\s(?P<paper>\d{4}\.\d{4,5})", re.S
)


def to_mathml(tex: str, display: bool = False) -> str:
    """MathML of one formula; wide ones can be scrolled. Raises: ValueError for what cannot be converted."""
    try:
        mathml = convert(tex.strip(), display="block" if display else "inline")
    except Exception as error:  # the library has a class for each type of error
        raise ValueError(f"formula {tex.strip()!r}: {type(error).__name__} {error}") from error
    if "\\" in mathml or "<mi>&</mi>" in mathml:
        raise ValueError(f"formula {tex.strip()!r} uses a command that latex2mathml does not know")
    mathml = mathml.replace("<mover>", '<mover accent="true">')  # hats and tildes, else set small and high
    mathml = OPERATOR.sub(r"<mo>\1</mo>", mathml.replace("<mi>&#x0007E;</mi>", "<mi>&#x0223C;</mi>"))  # \sim
    mathml = UPRIGHT.sub(r'<mi mathvariant="normal">\1</mi>', mathml)
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


# ---- what mkdocs calls ----------------------------------------------------------------------------------------------


def on_config(config):
    """Called by mkdocs once the settings are read."""
    config.markdown_extensions.append(FormulaExtension())
    return config


def on_files(files, config):
    """Called by mkdocs once the files are listed: images, notebooks, pages of the root, sources that pages name."""
    root = Path(config.docs_dir).parent
    for image in sorted((root / "models").glob("*/*.png")):
        files.append(File.generated(config, image.relative_to(root).as_posix(), abs_src_path=str(image)))
    for notebook in sorted((root / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.name}", abs_src_path=str(notebook)))
    for name, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=root_page((root / name).read_text(encoding="utf-8"))))
    files.append(File.generated(config, "citing.md", content=citing_page(root)))
    for path in sorted(named_sources(files, root)):
        hidden = InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, f"source/{path}.md", content=source_page(root, path), inclusion=hidden))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """../../models is right in the repository; in the site it is one level less."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation", "toc"]
    return re.sub(r"\]\(\.\./((?:\.\./)*models/)", r"](\1", markdown)


def on_page_content(html: str, page, files, **_) -> str:
    """Images that stand alone become figures with captions; papers and files that are named become links."""
    html = IMAGES.sub(lambda match: f"<figure>{match[1]}{caption(match[1])}</figure>", html)
    here = posixpath.dirname(page.file.dest_uri)

    def link(match: re.Match) -> str:
        if match["paper"]:
            return f'<a href="https://arxiv.org/abs/{match["paper"]}">{match[0]}</a>'
        path = match["path"]
        target = path and files.get_file_from_path(ROOT_PAGES.get(path) or f"source/{path}.md")
        if not target or target.src_uri == page.file.src_uri:
            return match[0]
        return f'<a href="{posixpath.relpath(target.dest_uri, here)}">{match[0]}</a>'

    return LINKED.sub(link, html)


# ---- pages that are made --------------------------------------------------------------------------------------------


def caption(images: str) -> str:
    """The text of the images, which is otherwise seen only where they are not; outputs of a notebook have none."""
    texts = re.findall(r'alt="([^"]*)"', images) if 'class="output"' not in images else []
    return f"<figcaption>{'; '.join(filter(None, texts))}</figcaption>" if any(texts) else ""


def root_page(text: str) -> str:
    """A Markdown file of the repository's root as a page: links from there lead to the same from docs/."""
    for name, page in ROOT_PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text.replace("](docs/", "](")


def named_sources(files, root: Path) -> set[str]:
    """Source files that the pages name, as paths from the repository's root."""
    texts = [file.content_string for file in files if file.src_uri.endswith(".md")]
    named = {path for text in texts for path in NAMED.findall(text)}
    return {path for path in named if "/" in path and not path.startswith(".") and (root / path).is_file()}


def source_page(root: Path, path: str) -> str:
    """A source file as a page of its own, which the search leaves out."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    code = (root / path).read_text(encoding="utf-8")
    head = f"---\ntitle: {path}\nsearch: {{exclude: true}}\nhide: [toc]\n---\n"
    return f"{head}# `{path}`\n\n~~~~~~{language}\n{code}\n~~~~~~\n"


def citing_page(root: Path) -> str:
    """CITATION.cff as BibTeX."""
    facts = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    authors = " and ".join("{" + author["name"] + "}" for author in facts["authors"])
    released = facts["date-released"]
    return f"""# Citing

If you use this software in a publication, please cite it with its version (here {facts["version"]}, {released}):

```bibtex
@software{{ldm,
  title = {{{facts["title"]}}},
  author = {{{authors}}},
  version = {{{facts["version"]}}},
  year = {{{released.year}}},
  note = {{{facts["license"]}}}
}}
```

The same is in `CITATION.cff`, which reference managers read. Methods have sources of their own: each chapter of the
[ideas](index.md#the-path) links the paper that it follows; cite those for the method.
"""
