"""The chapters: they build without a warning, name only what exists, and their examples work."""

import ast
import contextlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from page_checks import chromium, faults

from ldm.cli import main as cli
from ldm.config import overrides as command_line
from ldm.config.introspection import paths
from ldm.config.settings import PARTS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
CHAPTERS = sorted((ROOT / "docs" / "ideas").glob("*.md"))
WRITTEN = [page for page in PAGES if page.name != "log.md"]  # the log is history, and is not edited later
ROOT_PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "THIRD_PARTY")]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
CODE = re.compile(r"`([^`\n]+)`")
MATH = re.compile(r"<m[ino][^>]*>([^<]+)</m[ino]>")
PLACE = re.compile(r"# (?P<path>[\w/]+\.py)(?:, (?P<where>in|before) (?P<name>\w+))?\n(?P<code>.*)", re.S)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return BLOCK.sub("", text_of(page))


def examples() -> list[dict[str, str]]:
    """The python blocks of extending.md: each with a path, where in it the code goes, and the code."""
    found = [PLACE.fullmatch(code) for kind, code in BLOCK.findall(text_of(ROOT / "docs/extending.md"))]
    assert found and all(found), "each block begins with a comment that names its file"
    return [match.groupdict() for match in found if match]


def named(page: Path, pattern: str) -> set[str]:
    """What the page names between backticks and matches the whole pattern."""
    return {code for code in CODE.findall(prose_of(page)) if re.fullmatch(pattern, code)}


def written_by(page: Path) -> dict[str, str]:
    """The files that a reader of the page writes: blocks that begin with a comment that is a file's name alone."""
    blocks = (re.fullmatch(r"# ([\w-]+\.\w+)\n(.*)", code, re.S) for _, code in BLOCK.findall(text_of(page)))
    return {match[1]: match[0] for match in blocks if match}


# ---- what the pages name --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*WRITTEN, *ROOT_PAGES], ids=lambda page: page.stem)
def test_every_file_that_a_page_names_exists(page):
    made = {example["path"] for example in examples()} | set(written_by(page))
    names = {name for code in CODE.findall(prose_of(page)) for name in re.findall(r"[\w./-]+", code)}
    paths = {n for n in names if re.fullmatch(r"((ldm|tests|configs|docs|scripts|benchmarks|models)/\S*\w|\w+\.py)", n)}
    assert {path for path in paths if "NAME" not in path and not (ROOT / path).exists()} - made == set()


@pytest.mark.parametrize("page", [*WRITTEN, *ROOT_PAGES], ids=lambda page: page.stem)
def test_every_command_that_a_page_names_exists(page):
    for code in CODE.findall(prose_of(page)):
        match shlex.split(code) if code.startswith("ldm ") else []:
            case ["ldm", command]:  # named, without what it needs
                assert command in cli.COMMANDS
            case ["ldm", *words] if "NAME" not in words:
                cli.build_parser(words).parse_args(words)  # raises for an unknown command, option or figure


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_a_chapter_has_a_formula_and_ends_with_what_to_read_and_to_try(page):
    text = prose_of(page)
    assert "$$" in text
    assert re.search(r"\n\nRead: `ldm/[^\n]*`tests/[^\n]*\n\nTry: `", text), "the last two lines: Read and Try"


def test_the_path_leads_through_every_chapter_in_order():
    linked = re.findall(r"\(ideas/([\w-]+\.md)\)", text_of(ROOT / "docs/index.md"))
    assert linked == [page.name for page in CHAPTERS]


# ---- what a reader can use -------------------------------------------------------------------------------------------

WIDE = {"extending.md", "log.md"}  # code that is inserted as it stands; history
INDENTED = re.compile(r"^( *)```\w*\n(.*?)^\1```", re.M | re.S)  # also in notes and tabs


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in WIDE], ids=lambda page: page.stem)
def test_code_fits_the_column(page):
    lines = [line[len(indent) :] for indent, code in INDENTED.findall(text_of(page)) for line in code.splitlines()]
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_command_writes_into_the_pages_of_the_repository(page):
    for _, code in INDENTED.findall(text_of(page)):
        assert not re.search(r"(-o|--proof|>) docs/", code)


def messages() -> set[str]:
    """Every text of the package, with an ellipsis for each value in it."""

    def text(node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return re.sub(r"%[sdr]", "…", node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(text(value) for value in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return text(node.left) + text(node.right)
        return "…"

    sources = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "ldm").rglob("*.py")]
    strings = (ast.Constant, ast.JoinedStr, ast.BinOp)
    return {text(node) for tree in sources for node in ast.walk(tree) if isinstance(node, strings)}


def test_every_message_of_the_troubleshooting_is_one_of_the_program():
    known = messages() | {  # put together of two
        "… became non-finite before step … and is not saved: lower optim.lr, then --resume auto continues from the "
        "last checkpoint"
    }
    quoted = re.findall(r"^> (.+)$", text_of(ROOT / "docs/faq.md"), re.M)
    assert len(quoted) > 15
    assert [line for line in quoted if not any(line in text for text in known)] == []


# ---- the tutorial ---------------------------------------------------------------------------------------------------

STEPS = ("images", "train", "look", "use", "publish")

TUTORIAL = [ROOT / "docs/tutorial.md", *(ROOT / "docs/tutorial" / f"{name}.md" for name in STEPS)]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A folder with the files that the tutorial has its reader write, and the pictures that they make."""
    folder = tmp_path_factory.mktemp("reader")
    for page in TUTORIAL:
        for name, text in written_by(page).items():
            (folder / name).write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "make_shapes.py"], cwd=folder, check=True, timeout=600)
    return folder


def lines_of(pages: list[Path], pattern: str) -> list[list[str]]:
    """The words of each shell line of the pages that begins so; lines that go on are one."""
    found = [block for page in pages for block in BLOCK.findall(text_of(page))]
    blocks = "".join(code for kind, code in found if kind == "bash").replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in blocks.splitlines() if re.match(pattern, line)]


def test_every_command_of_the_tutorial_is_one(reader, monkeypatch):
    """Every shell line is of a kind that is looked at: settings of the stages are read, commands' options parsed."""
    monkeypatch.chdir(reader)
    for _, *words in (commands := lines_of(TUTORIAL, "ldm ")):
        cli.build_parser(words).parse_known_args(words)
    assert ["ldm", "train", "shapes.yaml"] in commands
    for stage in ("clip", "vae", "ldm"):
        settings, _ = command_line.parse(stage, ["shapes.yaml", "--dry-run"])
        assert settings.data.source == "shapes" and settings.name == "shapes"
    others = lines_of(TUTORIAL, r"mkdir shapes-project|python (make|check)_shapes\.py$|hf auth login$")
    assert len(commands) + len(others) == len(lines_of(TUTORIAL, r"\S"))


def test_the_pictures_of_the_tutorial_are_as_it_says(reader):
    """Its check finds all of them usable, and none shows what the model is asked for at the end."""
    from ldm.cli.data import run_check

    words = next(words for _, *words in lines_of(TUTORIAL, "ldm data check"))
    with contextlib.chdir(reader):
        assert run_check(cli.build_parser(words).parse_args(words)) == 0
    captions = [path.read_text(encoding="utf-8") for path in (reader / "shapes").glob("*.txt")]
    assert len(captions) > 900 and not any("green triangle" in caption for caption in captions)
    assert len(captions) == len(list((reader / "shapes").glob("*.png")))


# ---- pages ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages. The build fails at the first warning: a missing link or figure, a page not in the path."""
    for package in ("material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's own notice
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return out


def test_the_pages_need_nothing_from_elsewhere(site):
    """Scripts, styles, fonts and pictures all lie in the site; links to elsewhere are for people to follow."""
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = text_of(page)
        fetched = re.findall(
            r"""(?:<(?:script|img|iframe)[^>]*\ssrc|<link[^>]*\shref)\s*=\s*["']?(?:https?:)?//""", text
        )
        fetched += re.findall(r"url\(\s*[\"']?(?:https?:)?//", text)
        assert not fetched, page


@pytest.mark.parametrize("made, leads", [(None, "use/web.md"), ("a file", "try/index.html")])
def test_the_browser_page_is_linked_where_it_is_a_part_of_the_site(scripts, made, leads):
    pytest.importorskip("mkdocs")
    from docs_try import on_page_markdown

    files = SimpleNamespace(get_file_from_path=lambda path: made)
    assert on_page_markdown("[Try](try/index.html)", files=files) == f"[Try]({leads})"


def test_no_link_within_the_site_is_dead(site):
    """Pages, their sections, images, styles; 404.html has absolute addresses."""
    pages = (page for page in site.rglob("*.html") if page.name != "404.html")
    texts = {page: re.sub(r"<pre\b.*?</pre>", "", text_of(page), flags=re.S) for page in pages}
    ids = {page: set(re.findall(r"""\s(?:id|name)=["']?([^"'\s>]+)""", text)) for page, text in texts.items()}
    dead = []
    for page, text in texts.items():
        for link in re.findall(r"""\s(?:href|src)=["']?([^"'\s>]+)""", text):
            path, _, section = unquote(unescape(link)).partition("#")
            if re.match(r"[a-z]+:|//", path):
                continue
            target = (page.parent / path).resolve() if path else page
            found = target.exists() and (not section or target not in ids or section in ids[target])
            if not found and not section.startswith("__"):
                dead.append((page.relative_to(site).as_posix(), link))
    assert dead == []


def test_figures_have_captions_and_papers_and_sources_are_links(site):
    page = text_of(site / "ideas/07-ddim-ode.html")
    assert (
        page.count("<figcaption>") == page.count("<figure>") == text_of(ROOT / "docs/ideas/07-ddim-ode.md").count("![")
    )
    assert '<a href="https://arxiv.org/abs/2010.02502">arXiv 2010.02502</a>' in page
    assert '<a href="../source/ldm/diffusion/samplers.py.html"><code>ldm/diffusion/samplers.py</code></a>' in page
    assert "dpmpp_2m" in text_of(site / "source/ldm/diffusion/samplers.py.html")
    assert '"source/' not in (site / "search/search_index.json").read_text(encoding="utf-8")


def test_formulas_have_a_font_of_the_site_s_own(site):
    assert (site / "assets/math.woff2").stat().st_size < 150_000
    assert "url(math.woff2)" in text_of(site / "assets/style.css")
    fonts = pytest.importorskip("fontTools.ttLib")
    pytest.importorskip("brotli")
    font = fonts.TTFont(site / "assets/math.woff2")
    needed = {ord(c) for page in site.rglob("*.html") for m in MATH.findall(text_of(page)) for c in unescape(m)}
    assert "MATH" in font and {chr(c) for c in needed - set(font.getBestCmap()) if c > 32} == set()


def test_every_setting_is_described(site):
    page = text_of(site / "reference/settings.html")
    assert "<td></td>\n</tr>" not in page and page.count("</tr>") > 150


def test_every_formula_became_mathml_and_no_code_did(site):
    for page in WRITTEN:
        html = text_of(site / page.relative_to(ROOT / "docs").with_suffix(".html"))
        body = html[html.index("<article") : html.index("</article>")]
        formulas = CODE.sub("", prose_of(page)).count("$$") / 2
        assert body.count('display="block"') == formulas
        outside = re.sub(r"<(pre|code)\b.*?</\1>", "", body, flags=re.S)
        assert "$" not in outside and "\\" not in outside, page
        assert "<math" not in "".join(re.findall(r"<pre.*?</pre>", body, flags=re.S))


@pytest.fixture
def scripts(monkeypatch):
    """The modules that mkdocs calls can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def test_the_reference_has_every_documented_name_of_its_modules(site):
    from mkdocs.config import load_config

    rooms = load_config(str(ROOT / "mkdocs.yml"))["extra"]["reference"]
    for title, modules in rooms.items():
        page = text_of(site / "reference" / f"{title.lower().replace(' ', '-')}.html")
        for module in modules:
            path = ROOT / module.replace(".", "/")
            source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            for node in ast.parse(source.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                    assert node.name.startswith("_") or f'id="{module}.{node.name}"' in page, (module, node.name)


def test_the_reference_has_every_setting_and_every_command(site):
    settings, commands = (text_of(site / "reference" / f"{name}.html") for name in ("settings", "commands"))
    for kind in PARTS.values():
        for path, _ in paths(kind):
            assert f"<td><code>{path}</code></td>" in settings, path
    for name, (place, _) in cli.COMMANDS.items():
        for words in [f"{name} {inner}" for inner in place] if isinstance(place, dict) else [name]:
            assert f"ldm {words}</h2>" in re.sub(r"<a class=.headerlink.*?</a>", "", commands), words
    assert "<code>--guidance GUIDANCE</code>" in commands and "≥ 16, ≤ 1024, a multiple of 8" in settings


def test_a_docstring_becomes_markdown_and_nothing_in_it_is_taken_for_markup(scripts):
    from docs_docstrings import markdown

    told = """One <line> with $ and `a * b`.

    x = a * b

Args:
    one, two: either,
        or both.
    **more: the rest.

Raises: ValueError if 2*x < 3, or
    otherwise."""
    assert markdown(told).splitlines() == [
        *("One &lt;line> with &#36; and `a * b`.", "", "    x = a * b", ""),
        *("**Parameters:**", "", "- `one, two`: either,", "    or both.", "- `more`: the rest.", ""),
        *("**Raises:** ValueError if 2&#42;x &lt; 3, or", "otherwise."),
    ]


SHOWN = ("index.html", "install.html", "faq.html", "use/edit.html", "reference/editing.html", "ideas/04-noise.html")


def test_a_page_opened_from_disk_asks_nothing_of_the_network_and_can_be_searched(site):
    playwright = pytest.importorskip("playwright.sync_api")
    program = chromium()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page, wrong = browser.new_page(), []
        page.set_default_timeout(600_000)  # a machine under load
        page.on("console", lambda told: wrong.append(told.text) if told.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(site.as_uri()) else wrong.append(asked.url))
        for (width, scheme), name in itertools.product([(1280, "light"), (390, "dark")], SHOWN):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.goto((site / name).as_uri())
            assert faults(page) == {}, (name, width, scheme)
        page.set_viewport_size({"width": 1280, "height": 900})
        page.click(".md-search__input")
        page.keyboard.type("signal-to-noise")
        page.wait_for_selector(".md-search-result__link[href*='04-noise.html']", state="attached")
        browser.close()
    assert [each for each in wrong if not each.startswith(("data:", "blob:"))] == []


def test_a_formula_that_cannot_be_drawn_stops_the_build(scripts):
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    from docs_hooks import to_mathml

    for wrong in (r"\nosuch x", r"x^", r"a &= b", r"\left( x"):
        with pytest.raises(ValueError, match="formula"):
            to_mathml(wrong)
    assert "<mfrac>" in to_mathml(r"\frac{1}{2}")
    assert "<mo>&#x0223C;</mo>" in to_mathml(r"z \sim p")  # a relation, with space around it


# ---- the examples of extending.md -----------------------------------------------------------------------------------


def put(root: Path, path: str, where: str | None, name: str | None, code: str) -> None:
    """Write an example's code where its first line says."""
    file = root / path
    if where is None:
        file.write_text((file.read_text() if file.exists() else "") + "\n\n" + code)
        return
    lines = file.read_text().splitlines(keepends=True)
    at = [i for i, line in enumerate(lines) if re.match(rf"(class |def )?{name}\b", line)]
    assert len(at) == 1, f"{path} has {len(at)} lines that begin with {name}"
    place = at[0]
    if where == "in":  # a table's last line
        place += next(i for i, line in enumerate(lines[place:]) if line.startswith(("}", "]", ")")))
    while where == "before" and lines[place - 1].startswith("#"):
        place -= 1  # a comment stays with what it is about
    lines.insert(place, code)
    file.write_text("".join(lines))


def test_each_example_is_one_source_file_one_test_file_and_at_most_one_registry_line():
    for section in text_of(ROOT / "docs/extending.md").split("\n## ")[1:]:
        blocks = [match.groupdict() for _, code in BLOCK.findall(section) if (match := PLACE.fullmatch(code))]
        lines = [block for block in blocks if block["where"] == "in"]
        source = {block["path"] for block in blocks if block["path"].startswith("ldm/") and block not in lines}
        tests = {block["path"] for block in blocks if block["path"].startswith("tests/")}
        assert not blocks or (len(source) <= 1 and len(tests) == 1), section.splitlines()[0]
        assert len(lines) <= 1 and all(line["code"].count("\n") == 1 for line in lines), section.splitlines()[0]


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the project, with what is compiled of it, and every example put in its place."""
    copy = tmp_path_factory.mktemp("extended")
    for folder in ("ldm", "tests"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("*.pyc.*"))  # half written
    shutil.copy(ROOT / "pyproject.toml", copy)
    for example in examples():
        put(copy, **example)
    return copy


def run_tests(copy: Path, names: list[str]) -> None:
    """Run the tests of the copy whose names have one of these in them, in the files that the examples extend."""
    files = sorted({example["path"] for example in examples() if example["path"].startswith("tests/")})
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", " or ".join(names)]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= len(names), done.stdout


def test_the_examples_work(extended):
    run_tests(extended, re.findall(r"^def (test_\w+)", "\n".join(e["code"] for e in examples()), re.M))


@pytest.mark.slow
def test_what_holds_for_all_holds_for_the_examples(extended):
    """The tests that take each name of a table as a parameter."""
    lines = [e["code"] for e in examples() if e["where"] == "in"]
    run_tests(extended, [name for line in lines for name in re.findall(r'^    "(\w+)":', line)])
