"""What the tests of the browser page share: node, a served page, Chromium. Each is skipped where it is not at hand."""

import shutil
from functools import partial

import pytest
from browser_page import MODEL, ask, runtime_at_hand, serving, web
from page_checks import chromium

from ldm.apps.web import runtime, site
from ldm.pipelines.model_folder import resolve_model
from ldm.pipelines.torch_free import open_torch_free


@pytest.fixture(scope="session")
def light():
    return open_torch_free(resolve_model(MODEL))


@pytest.fixture
def fake(tmp_path):
    """A folder with files that have the names of onnxruntime-web's."""
    folder = tmp_path / "node_modules" / runtime.PACKAGE / "dist"
    folder.mkdir(parents=True)
    for name in runtime.FILES:
        (folder / name).write_bytes(name.encode())
    return tmp_path / "node_modules"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """(code, told) -> what the code, which may import the page's modules, prints as JSON about `told`."""
    return partial(ask, shutil.copytree(site.PAGE, tmp_path_factory.mktemp("node") / "page"))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The page of a shipped model on a loopback server: (folder, address)."""
    found = runtime_at_hand()
    if found is None:
        pytest.skip("onnxruntime-web is not here: `ldm web` fetches it into cache/")
    out = tmp_path_factory.mktemp("web") / "site"
    web(MODEL, "-o", out, "--runtime", found)
    with serving(out) as address:
        yield out, address


@pytest.fixture(scope="module")
def launch():
    """(further options) -> a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = chromium()
    with playwright.sync_playwright() as driver:
        yield lambda *options: driver.chromium.launch(executable_path=program, args=["--no-sandbox", *options])


@pytest.fixture(scope="module")
def browser(launch):
    opened = launch()
    yield opened
    opened.close()
