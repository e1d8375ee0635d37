"""The app as it is served: driven by plain requests, as a stranger would send them, and by Chromium."""

import base64
import http.client
import io
import json
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import psutil
import pytest
from page_checks import chromium, faults
from PIL import Image
from tiny_model import tiny_folder

from ldm.cli import main as cli
from ldm.pipelines.image_metadata import read_png
from tests.apps.demo.test_session import a_run

pytest.importorskip("gradio", reason="the app extra is not installed")
OWN = "the model's own"
DRAW = ["water", "", 2, 3, OWN, 5, 1, 16, 16]  # prompt, negative, guidance, steps, sampler, seed, number, height, width


class Served:
    """An app in a process of its own."""

    def __init__(self, *options, cwd: Path):
        command = [sys.executable, "-m", "ldm", "app", "--port", "0", *map(str, options)]
        self.process = subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=(cwd / "errors.txt").open("w"), text=True
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line + (cwd / "errors.txt").read_text()
        self.address = line.split()[0].rstrip("/")
        self.netloc = urlsplit(self.address).netloc

    def ask(self, method: str, path: str, body: bytes | None = None, **headers) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.netloc, timeout=600)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, path: str, content, **headers) -> tuple[int, bytes]:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self.ask("POST", f"/gradio_api/{path}", body, **{"Content-Type": "application/json", **headers})

    def announce(self, path: str, length: int) -> int:
        """The status for a body that is announced, and not sent before the answer is there."""
        connection = http.client.HTTPConnection(self.netloc, timeout=600)
        try:
            connection.putrequest("POST", f"/gradio_api/{path}")
            connection.putheader("Content-Length", str(length))
            connection.endheaders()
            return connection.getresponse().status
        finally:
            connection.close()

    def call(self, name: str, data, **headers) -> tuple[int, list[tuple[str, object]]]:
        """Use a tab as a program does: the status, and the events (kind, content) until the end."""
        status, answer = self.post(f"call/{name}", {"data": data}, **headers)
        if status != 200:
            return status, []
        status, stream = self.ask("GET", f"/gradio_api/call/{name}/{json.loads(answer)['event_id']}")
        events = re.findall(r"event: (\w+)\ndata: (.*)\n", stream.decode())
        return status, [(kind, json.loads(content)) for kind, content in events]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(300)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    tiny_folder(folder / "model")
    a_run(folder / "runs")
    return folder


@pytest.fixture(scope="module")
def app(place):
    served = Served("-m", place / "model", "--runs", place / "runs", cwd=place)
    yield served
    served.stop()


def pictures(app: Served, content) -> list[bytes]:
    """The files of a gallery in an answer of the draw tab."""
    return [app.ask("GET", urlsplit(each["image"]["url"]).path)[1] for each in content[2]]


def drawn_again(png: bytes, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The picture, and what `ldm generate --from` makes of it."""
    (folder / "a.png").write_bytes(png)
    args = cli.build_parser(["generate"]).parse_args(["generate", "--from", f"{folder}/a.png", "-o", f"{folder}/b.png"])
    assert args.run(args) == 0
    first, again = (np.asarray(Image.open(folder / name)).astype(int) for name in ("a.png", "b.png"))
    return first, again


def test_a_program_draws_through_the_page_and_gets_a_png_that_can_be_drawn_again(app, tmp_path):
    status, events = app.call("draw", DRAW)
    assert status == 200 and events[-1][0] == "complete", events[-1]
    assert any("data:image/png;base64" in content[1] for kind, content in events if kind == "generating")
    (png,) = pictures(app, events[-1][1])
    first, again = drawn_again(png, tmp_path)
    np.testing.assert_array_equal(again, first)
    assert read_png(tmp_path / "a.png")["prompt"] == "water"


def test_the_page_fetches_nothing_from_elsewhere_and_offers_no_share(app):
    status, page = app.ask("GET", "/")
    config = json.loads(app.ask("GET", "/config")[1])
    assert status == 200 and config["analytics_enabled"] is False and not config.get("share_url")
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//(?!www\.gradio\.app)[^\"]+\.(?:js|css)", page.decode())
    assert "fonts.googleapis.com" not in app.ask("GET", "/theme.css")[1].decode()


def test_trainings_are_watched(app):
    status, events = app.call("watch", ["demo/ldm"])
    text, curves, grids = events[-1][1]
    assert status == 200 and "step 40 of 100" in text and "<svg" in curves and len(grids) == 2


SETTINGS = {"prompt": 0, "negative": 1, "guidance": 2, "steps": 3, "sampler": 4, "seed": 5, "number": 6}
WRONG = [
    ("prompt", "x" * 10_000),
    ("prompt", {"path": "/etc/passwd"}),
    ("prompt", "a\x00b"),
    ("prompt", "\ud800"),
    ("steps", 10**9),
    ("steps", -1),
    ("steps", "many"),
    ("steps", None),
    ("guidance", 1e308),
    ("guidance", -3),
    ("seed", -1),
    ("seed", 10**30),
    ("number", 10**6),
    ("number", 0),
    ("number", [1]),
    ("sampler", "../../etc/passwd"),
    ("sampler", 7),
]


def refused(app: Served, data, name: str = "draw") -> bool:
    """Whether a call is answered with an error, perhaps after a line that says why: no server error, no image."""
    status, events = app.call(name, data)
    assert status < 500, status
    if 400 <= status < 500:
        return True
    *before, (last, _) = [(kind, content) for kind, content in events if kind != "heartbeat"]
    return last == "error" and all(kind == "generating" and content[2] == [] for kind, content in before)


@pytest.mark.parametrize(("name", "value"), [WRONG[0], WRONG[4], WRONG[15]])
def test_an_abusive_value_is_refused(app, name, value):
    assert refused(app, [value if i == SETTINGS[name] else each for i, each in enumerate(DRAW)])


def test_a_stranger_is_refused(app):
    assert app.post("call/draw", {"data": DRAW}, Origin="http://evil.example")[0] == 403
    assert app.ask("GET", "/", Host="evil.example")[0] == 403
    assert app.announce("call/draw", 10**6) == app.announce("upload", 10**9) == 413
    assert app.ask("GET", "/gradio_api/file=/etc/passwd")[0] in (403, 404)


# ---- slow: everything a stranger may try ----------------------------------------------------------------------------


def paths_elsewhere(place: Path) -> list[str]:
    """Addresses under which a careless server gives away a file."""
    secret = quote(str(place / "model" / "ldm.json"))
    ways = [secret, "/etc/passwd", "../../etc/passwd", "..%2f..%2f..%2fetc/passwd", "%2e%2e/%2e%2e/etc/passwd"]
    ways += ["/proc/self/environ", "//etc/passwd", "file:///etc/passwd", "model/ldm.json", "C:\\Windows\\win.ini"]
    routes = [
        "/gradio_api/file=",
        "/file=",
        "/gradio_api/file/",
        "/static/",
        "/assets/",
        "/gradio_api/custom_component/",
    ]
    fetched = ["/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/vibe-code"]
    return [route + way for route in routes for way in ways] + fetched


@pytest.mark.slow
def test_no_file_of_the_host_is_given_away(app, place):
    for path in paths_elsewhere(place):
        status, body = app.ask("GET", path)
        assert 300 < status < 500, (path, status)
        assert b"root:" not in body and b"num_inference_steps" not in body, path


@pytest.mark.slow
def test_every_abuse_is_refused_and_the_app_goes_on(app):
    tried = [[value if i == SETTINGS[name] else each for i, each in enumerate(DRAW)] for name, value in WRONG]
    tried += [[], DRAW[:3], "water", None, {"prompt": "water"}]
    for data in tried:
        assert refused(app, data), str(data)[:80]
    for name in ("nothing", "../draw", "lambda", "load_example", "__class__"):
        assert refused(app, DRAW, name), name
    assert refused(app, ["../.."], "watch") and refused(app, [{"path": "/etc"}], "watch")
    for body in (b"", b"{", b"[" * 60_000, b"\xff\xfe", b'{"data": NaN}', b'{"fn_index": 99999, "data": []}'):
        for route in ("queue/join", "run/draw", "call/nothing", "component_server", "reset", "vibe-edit"):
            assert 400 <= app.post(route, body)[0] < 500, (route, body[:20])
    assert app.announce("upload", 5 * 2**20) == app.announce("queue/join", 70_000) == 413
    assert app.ask("POST", "/gradio_api/upload", b"x", **{"Content-Type": "multipart/form-data"})[0] in (400, 422)
    assert app.call("draw", DRAW)[1][-1][0] == "complete"


def upload(app: Served, content: bytes, name: str = "a.png") -> tuple[int, bytes]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return app.ask("POST", "/gradio_api/upload", head + content + b"\r\n--x--\r\n", **kind)


def sent(app: Served, image: Image.Image | bytes, kind: str = "PNG", name: str = "a.png") -> dict:
    """A picture or any other content as a canvas names it, once it is uploaded."""
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        image = buffer.getvalue()
    status, answer = upload(app, image, name)
    assert status == 200, answer
    return {"path": json.loads(answer)[0], "meta": {"_type": "gradio.FileData"}, "orig_name": name}


def painted(size=(16, 16)) -> Image.Image:
    layer = Image.new("RGBA", size)
    layer.paste((224, 69, 123, 153), (8, 0, 16, 16))
    return layer


INPAINT = [1, "water", 2, 3, OWN, 5, 1]  # strength, prompt, guidance, steps, sampler, seed, number


def test_a_program_paints_over_a_picture_and_the_rest_is_kept(app):
    ground = Image.new("RGB", (16, 16), "white")
    canvas = {"background": sent(app, ground), "layers": [sent(app, painted())], "composite": None}
    status, events = app.call("inpaint", [canvas, *INPAINT])
    assert status == 200 and events[-1][0] == "complete", events[-1]
    (png,) = pictures(app, events[-1][1])
    made = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert (made[:, :128] == 255).all() and (made[:, 128:] != 255).any()


@pytest.mark.slow
def test_no_canvas_but_two_pictures_of_one_size_is_painted_on(app, place):
    ground, paint = sent(app, Image.new("RGB", (16, 16), "white")), sent(app, painted())
    elsewhere = ["/etc/passwd", str(place / "model" / "ldm.json"), "../../etc/passwd", "", "\x00", "a" * 5000]
    elsewhere += [paint["path"] + "/../../../../etc/passwd", f"{Path(paint['path']).parent}", "/proc/self/environ"]
    remote = ["http://127.0.0.1:1/a.png", " HTTPS://10.0.0.1/", "ftp://a/b", "//evil.example/a.png"]
    files = [{"path": path} for path in elsewhere + remote] + [{"url": "http://127.0.0.1:1/a.png"}, {}, [], "a.png", 7]
    files += [{**paint, "path": path} for path in (None, 7, [paint["path"]])]
    odd = [sent(app, painted(size)) for size in ((15, 16), (1, 1), (16, 4000), (2048, 2049))]
    odd += [sent(app, content) for content in (b"", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"%!PS\n(x) show")]
    odd += [sent(app, Image.new("RGBA", (16, 16)))]
    canvases = [{"background": file, "layers": [paint], "composite": None} for file in files]
    canvases += [{"background": ground, "layers": [file], "composite": None} for file in [*files, *odd]]
    canvases += [{"background": file, "layers": [paint], "composite": None} for file in odd[:-1]]
    canvases += [{"background": ground, "layers": layers} for layers in ([], [paint] * 5, {}, paint, "a", None)]
    canvases += [None, [], "a", ground, {"layers": [paint]}]
    for canvas in canvases:
        assert refused(app, [canvas, *INPAINT], "inpaint"), canvas
    many = {"background": ground, "layers": [paint] * 500}
    assert app.post("call/inpaint", {"data": [many, *INPAINT]})[0] == 413
    assert upload(app, b"x" * (4 * 2**20 + 1))[0] == 413
    assert app.post("component_server", {"fn_name": "accept_blobs"})[0] == 404
    name = json.loads(upload(app, b"x", "../../../../tmp/escaped.png")[1])[0]
    assert ".." not in name and not Path("/tmp/escaped.png").exists()
    canvas = {"background": ground, "layers": [paint], "composite": {"path": "/etc/passwd"}}
    assert refused(app, [canvas, *INPAINT], "inpaint")
    assert app.call("inpaint", [{**canvas, "composite": None}, *INPAINT])[1][-1][0] == "complete"


@pytest.mark.slow
def test_a_flood_is_answered_or_told_that_the_queue_is_full(app):
    data = [*DRAW[:3], 100, *DRAW[4:6], 16, *DRAW[7:]]
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda i: app.post("call/draw", {"data": data}), range(60)))
    full = [body for status, body in answers if status != 200]
    assert full and all(b"ueue" in body and b"full" in body for body in full)
    assert len(answers) - len(full) >= 16
    deadline = time.monotonic() + 300
    while app.call("draw", DRAW)[0] != 200:  # the flood is over
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.slow
def test_two_hundred_requests_from_four_clients_see_no_fault_and_leave_no_memory_behind(app):
    server, sizes, seen, lock = psutil.Process(app.process.pid), [], [], threading.Lock()

    def client(number: int) -> None:
        for i in range(50):
            data = [f"glyph {number} {i}", *DRAW[1:5], 100 * number + i, 2, *DRAW[7:]]
            status, events = app.call("draw", data)
            with lock:
                seen.append((status, events[-1][0]))
                sizes.append(server.memory_info().rss / 2**20)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(client, range(4)))
    assert seen == [(200, "complete")] * 200
    early, late = np.mean(sizes[40:80]), np.mean(sizes[-40:])
    print(f"\nmemory after 40 to 80 requests {early:.1f} MiB, after 160 to 200 {late:.1f} MiB")
    assert late - early < 10


@pytest.fixture
def browser(tmp_path):
    """Chromium on a page of the shipped model, and what it complained of."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = chromium()
    a_run(tmp_path / "runs")
    served = Served("--runs", "runs", cwd=tmp_path)
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page, complaints = opened.new_page(accept_downloads=True), []
        page.set_default_timeout(600_000)  # a machine under load
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(served.address)
        yield page, complaints
        opened.close()
    served.stop()


def paint_over(page, canvas) -> None:
    """A stroke of the mouse within the right half of the picture, which stands in the middle of a canvas.

    A single one of few movements: Chromium without a GPU waits with each for the canvas to be drawn again.
    """
    page.wait_for_timeout(3000)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2 + 80, box["y"] + box["height"] / 2
    page.mouse.move(x, y - 100)
    page.mouse.down()
    page.mouse.move(x, y + 100, steps=2)
    page.mouse.up()
    page.wait_for_timeout(1000)


def played(page, panel, folder: Path) -> list:
    """The MP4 is downloaded and played: its size, and whether it has run to its end."""
    with page.expect_download() as download:
        panel.get_by_role("link", name="MP4").click()
    download.value.save_as(folder / "way.mp4")
    return page.evaluate(
        """content => new Promise((done, fail) => {
            const video = Object.assign(document.createElement("video"), {muted: true, onerror: fail});
            video.onended = () => done([video.videoWidth, video.videoHeight, video.currentTime > 1]);
            video.src = "data:video/mp4;base64," + content;
            video.play().catch(fail);
        })""",
        base64.b64encode((folder / "way.mp4").read_bytes()).decode(),
    )


@pytest.mark.slow
def test_a_person_uses_every_tab_and_the_browser_has_nothing_to_complain_of(browser, tmp_path):
    page, complaints = browser

    def tab(name: str, prompt: str | None = "horizontal stacked glyph", button: str = "Generate"):
        page.get_by_role("tab", name=name).click()
        panel = page.get_by_role("tabpanel").filter(visible=True)
        assert faults(page) == {}, name
        if prompt is not None:
            panel.get_by_role("textbox", name=re.compile("prompt", re.I)).first.fill(prompt)
        if name == "Image to image":
            panel.locator("input[type=file]").set_input_files(tmp_path / "a.png")
            panel.locator("img").first.wait_for()
        if name == "Inpaint":
            with page.expect_response(re.compile("file=.*png")):
                panel.locator("input[type=file]").first.set_input_files(tmp_path / "a.png")
            paint_over(page, panel.locator("canvas").first)
        if button:
            panel.get_by_role("button", name=button, exact=True).click()
        return panel

    panel = tab("Generate")
    panel.locator(".previews img").first.wait_for()
    panel.get_by_text(re.compile("4 images, seeds")).wait_for()
    panel.locator(".thumbnail-item").first.click()
    opened = panel.locator(".media-button img")
    opened.wait_for()
    assert opened.bounding_box()["height"] > 400
    with page.expect_download() as download:
        panel.get_by_label("Download", exact=True).first.click()
    first, again = drawn_again(Path(download.value.path()).read_bytes(), tmp_path)
    assert abs(first - again).max() <= 1
    panel = tab("Unconditional", None, button="")
    stop = panel.get_by_role("button", name="Stop")
    assert stop.is_disabled()
    panel.get_by_role("spinbutton", name=re.compile("Images")).fill("16")  # so that Stop comes before the end
    panel.get_by_role("button", name="Generate", exact=True).click()
    panel.locator(".previews img").first.wait_for()
    stop.click()
    panel.get_by_text("stopped (step").wait_for()
    assert stop.is_disabled()
    tab("Image to image").get_by_text("4 images", exact=True).wait_for()
    panel = tab("Inpaint")
    panel.get_by_text("4 images", exact=True).wait_for()
    for made in panel.locator(".thumbnail-item img").all():
        png = page.request.get(made.get_attribute("src")).body()
        changed = np.asarray(Image.open(io.BytesIO(png)).convert("L")) != np.asarray(Image.open(tmp_path / "a.png"))
        assert not changed[:, :128].any() and changed[:, 128:].any()  # painted was in the right half
    panel = tab("Interpolate")
    panel.get_by_text("9 images", exact=True).wait_for()
    assert played(page, panel, tmp_path) == [256, 256, True]
    tab("Attention", button="Show").get_by_text("stacked: ").wait_for()
    panel = tab("Seen before?", button="Compare")
    panel.get_by_text(re.compile("training glyphs \\(|no glyph fonts")).first.wait_for()
    panel = tab("Trainings", None, button="")
    panel.get_by_role("button", name="All runs").click()
    panel.get_by_text("step 40 of 100").wait_for()
    assert complaints == []


@pytest.mark.slow
def test_a_training_is_started_stopped_and_resumed_in_a_browser_and_outlives_the_page(browser, tmp_path):
    page, complaints = browser
    images, rng = tmp_path / "dots", np.random.default_rng(0)
    images.mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(images / f"{i:02}.png")
        (images / f"{i:02}.txt").write_text(f"dots number {i}")

    def panel():
        page.get_by_role("tab", name="Trainings").click()
        return page.get_by_role("tabpanel").filter(visible=True)

    def process() -> psutil.Process:
        return psutil.Process(json.loads((tmp_path / "runs/dots/training.json").read_text())["pid"])

    try:
        panel().get_by_label("Folder of images").fill(str(images))
        panel().get_by_label("Minutes").fill("600")
        panel().get_by_role("button", name="Plan", exact=True).click()
        panel().get_by_text("planned: read the plan").wait_for()
        panel().get_by_role("button", name="Start", exact=True).click()
        panel().get_by_text(re.compile("training the .*: step")).wait_for()
        page.reload()  # the page is another one now
        panel().get_by_text(re.compile("training the .*: step")).wait_for()
        panel().get_by_role("button", name="Stop", exact=True).click()
        panel().get_by_text("not running").wait_for()
        panel().get_by_role("button", name="Resume", exact=True).click()
        panel().get_by_text(re.compile("training the .*: step")).wait_for()
        assert complaints == []
    finally:
        process().kill()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_page_and_images_come_right_after_the_button(browser, scheme):
    page, complaints = browser
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.locator(".thumbnail-item").first.wait_for()
    assert faults(page) == {}
    button = panel.get_by_role("button", name="Generate", exact=True).bounding_box()
    image = panel.locator(".thumbnail-item").first.bounding_box()
    assert 0 < image["y"] - button["y"] < 300 and complaints == []
