"""The page in a real browser: headless Chromium, told what to do through its DevTools protocol."""

import contextlib
import itertools
import json
import shutil
import subprocess
import threading
import time
import urllib.request

import numpy as np
import pytest

from medgan_jax.evaluation import page as evaluation_page
from medgan_jax.evaluation.report import Figure, Report
from medgan_jax.images import encode_png
from medgan_jax.metrics.distribution.bootstrap import Estimate
from medgan_jax.proving import page as trial_page
from medgan_jax.proving.arms import all_arms
from medgan_jax.proving.figures import Fold, judge
from medgan_jax.report import page
from medgan_jax.report.page import write_report
from medgan_jax.report.server import Server

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"
KEYS = {" ": ("Space", 32), "ArrowLeft": ("ArrowLeft", 37), "ArrowRight": ("ArrowRight", 39), "Home": ("Home", 36),
        "End": ("End", 35), "ArrowUp": ("ArrowUp", 38), "ArrowDown": ("ArrowDown", 40)}  # fmt: skip

NAMED = {"button", "checkbox", "combobox", "image", "link", "meter", "progressbar", "slider"}  # roles that need names
# Texts below the contrast of WCAG 2.2, 1.4.3 (AA), as "ratio text"; those of large type need less, but have none.
FAINT = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(rgb[i] / 255), 0);
  const backdrop = (element) => {
    const colour = element ? numbers(getComputedStyle(element).backgroundColor) : [255, 255, 255];
    return colour[3] === 0 ? backdrop(element.parentElement) : colour;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), faint = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility()) continue;
    const pair = [numbers(getComputedStyle(element).color), backdrop(element)].map(luminance).sort((a, b) => a - b);
    const ratio = (pair[1] + 0.05) / (pair[0] + 0.05);
    if (!(ratio >= 4.5)) faint.push(`${ratio.toFixed(2)} ${text}`);
  }
  return faint;
})()"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium is installed; the page was not opened in a browser"),
    pytest.mark.usefixtures("no_plots"),
]


class Tab:
    """One page of the browser, and all that it complained of or asked the network for."""

    def __init__(self, socket):
        self._socket, self._number = socket, 0
        self.complaints, self.requests, self.dialogs = [], [], []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=20))
            if message.get("id") == self._number:
                if "navigated" in message.get("error", {}).get("message", ""):
                    raise ConnectionAbortedError
                return message["result"]
            self._note(message.get("method"), message.get("params"))

    def _note(self, event, details):
        if event in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(details)
        elif event == "Network.requestWillBeSent" and not details["request"]["url"].startswith("data:"):
            self.requests.append(details["request"]["url"])
        elif event == "Page.javascriptDialogOpening":
            self.dialogs.append(details)
            self._socket.send(
                json.dumps({"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}})
            )

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def until(self, expression):
        """Waits for what an expression of JavaScript says to be true."""
        end = time.monotonic() + 10
        while True:
            with contextlib.suppress(ConnectionAbortedError):  # the page went while it was asked
                if self.value(expression):
                    return
            assert time.monotonic() < end, f"never {expression}"
            time.sleep(0.03)

    def open(self, url):
        self.complaints.clear()
        self.requests.clear()
        self.call("Page.navigate", url=url)
        self.until(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def press(self, key, *, modifiers=0):
        code, number = KEYS[key]
        text = {"text": " "} if key == " " else {}
        about = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector):
        script = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{script}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        places = []
        while len(places) < 2 or places[-1] != places[-2]:  # it stands still: pictures above may still be laid out
            places.append(
                self.value(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({script}.getBoundingClientRect())")
            )
            time.sleep(0.05)
        x, y = places[-1]
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    @property
    def step(self):
        return int(self.value("document.getElementById('step').textContent"))

    @property
    def is_playing(self):
        return self.value("document.getElementById('play-label').textContent") == "Pause"

    def is_showing(self, step):
        """Whether the picture itself is that of the step, once it is decoded."""
        alt = json.dumps(f"Generated images at step {step}")
        self.until(f"document.querySelector('#screen img').alt === {alt}")
        return self.value("document.querySelector('#screen img').naturalWidth > 0")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    from websockets.sync.client import connect

    folder = tmp_path_factory.mktemp("chromium")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
    command += ["--disable-background-networking", "--window-size=1280,800", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [*command, f"--user-data-dir={folder}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        port_file, end = folder / "DevToolsActivePort", time.monotonic() + 30
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert time.monotonic() < end, "chromium did not start"
            time.sleep(0.02)
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            (target,) = [each for each in json.load(answer) if each["type"] == "page"]
        with connect(target["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def test_the_player_plays_and_obeys_the_keyboard(make, tab):
    url = write_report(make(alarms=[{"step": 150, "title": "Mode collapse"}])).as_uri()
    tab.open(url)
    assert tab.is_showing(400)
    assert tab.value("document.querySelector('#marks button').style.left") == "37.5%"  # of 0 to 400
    tab.press("ArrowLeft")  # with nothing in focus
    assert tab.step == 300
    assert tab.is_showing(300)
    assert tab.value("document.getElementById('scrub').value") == "3"
    assert tab.value("document.getElementById('scrub').getAttribute('aria-valuetext')") == "step 300, picture 4 of 5"
    before = tab.value("scrollY")
    tab.press("Home")  # scrolls the page, as long as the player has not the focus
    tab.press("ArrowLeft", modifiers=2)  # with Ctrl, the browser's own
    assert tab.step == 300
    tab.value("document.getElementById('speed').focus({preventScroll: true})")
    tab.press("Home")  # the list's own
    assert tab.step == 300
    assert tab.value("document.getElementById('speed').value") == "0.5"
    tab.value("document.getElementById('speed').value = '4'")
    tab.value("document.getElementById('player').focus({preventScroll: true})")
    for key, step in (("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 100), ("End", 400), ("ArrowRight", 400)):
        tab.press(key)
        assert tab.step == step, key
    for key, speed in (("ArrowUp", "8"), ("ArrowUp", "16"), ("ArrowDown", "8")):
        tab.press(key)
        assert tab.value("document.getElementById('speed').value") == speed, key
    assert tab.value("scrollY") == before
    tab.value("document.getElementById('loop').checked = false")
    tab.press(" ")  # from the end: it begins anew
    assert tab.is_playing
    tab.until("document.getElementById('step').textContent === '200'")
    tab.press(" ")
    assert not tab.is_playing
    tab.press(" ")
    tab.until("document.getElementById('play-label').textContent === 'Play'")  # without the loop, it ends
    assert tab.is_showing(400)
    tab.value("document.getElementById('loop').checked = true; document.getElementById('speed').value = '30'")
    tab.value(
        "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('step').textContent))"
        ".observe(document.getElementById('step'), {childList: true})"
    )
    tab.press(" ")
    tab.until("seen.length >= 8")
    assert tab.value("seen.slice(0, 8)") == ["0", "100", "200", "300", "400", "0", "100", "200"]
    assert tab.complaints == []
    assert tab.requests == [url]


def test_the_player_obeys_the_mouse(make, tab):
    tab.open(write_report(make()).as_uri())
    for place, step in (
        ("#first", 0), ("#forward", 100), ("#marks button", 200), ("#last", 400), (".jump", 200), ("#back", 100),
        ("#scrub", 200),
    ):  # fmt: skip
        tab.click(place)  # in its middle
        assert tab.step == step, place
        assert place != ".jump" or tab.value("document.activeElement.id") == "player"
    tab.click("#play")
    tab.until("Number(document.getElementById('step').textContent) > 200")
    tab.click("#screen")
    assert not tab.is_playing
    assert tab.complaints == []


def test_a_hostile_workdir_runs_nothing(make, tab, tmp_path):
    files = make(
        "<img src=x onerror=alert(3)>",
        labels={HOSTILE: 12},
        run={"command": HOSTILE},
        config={"arch": HOSTILE},
        alarms=[{"step": 100, "title": HOSTILE, "sentence": HOSTILE, "remedies": [HOSTILE], "action": HOSTILE}],
    )
    url = write_report(files).as_uri()
    tab.open(url)
    assert tab.value("document.querySelector('h1').textContent") == files.path.name
    assert HOSTILE in tab.value("document.getElementById('data').textContent")
    assert tab.value("document.querySelector('#marks button').title") == f"{HOSTILE[:80]}, step 100"
    assert tab.value("document.querySelectorAll('script').length") == 2
    assert tab.dialogs == []
    assert tab.complaints == []
    assert tab.requests == [url]

    # Even a mistake in escaping would run nothing: the policy of the page is a second wall.
    attack = (
        '<img src="data:," onerror="window.broken = 1"><script>window.broken = 2</script><img src="http://192.0.2.1/">'
    )
    (tmp_path / "attacked.html").write_text(files.report.read_text().replace("</h1>", f"</h1>{attack}"))
    tab.open((tmp_path / "attacked.html").as_uri())
    tab.until("document.querySelectorAll('header img').length === 2")
    assert tab.value("window.broken") is None
    assert tab.step == 400  # our own script does run
    assert any("Content Security Policy" in json.dumps(each) for each in tab.complaints)


def test_without_javascript_the_last_picture_is_shown(make, tab):
    url = write_report(make()).as_uri()
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(url)
        assert tab.is_showing(400)
        assert tab.value("getComputedStyle(document.getElementById('controls')).display") == "none"
        assert "needs JavaScript" in tab.value("document.querySelector('noscript').innerText")
    finally:
        tab.call("Emulation.setScriptExecutionDisabled", value=False)


def test_nothing_is_wider_than_the_screen(make, tab):
    files = make(labels={"x" * 300: 3}, run={"command": "y" * 3000})
    with open(files.metrics, "a") as file:
        file.write('{"step": 401, "loss_gen": 1, "loss_dis": 0.0084812, "score_dis": 0.99581, "score_gen": 0.00712}\n')
    url = write_report(files).as_uri()
    try:
        for width in (360, 1190):
            tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
            )
            tab.open(url)
            assert tab.value("document.documentElement.scrollWidth") <= width
            names = "document.querySelector('#evaluation tbody th').getBoundingClientRect().width"
            assert tab.value(names) > 100  # else they are broken within words
            for cell in ("th", "td:last-child"):
                assert tab.value(
                    f"(cell => {{ const text = document.createRange(); text.selectNodeContents(cell);"
                    "const right = cell.closest('.scroll').getBoundingClientRect().right;"
                    "return text.getClientRects().length === 1 && text.getBoundingClientRect().right <= right + 1; })"
                    f"(document.querySelector('.card tbody tr:last-child {cell}'))"
                ), cell
    finally:
        tab.call("Emulation.clearDeviceMetricsOverride")


def write_evaluation(folder):
    images, estimate = np.zeros((8, 16, 16, 3), np.uint8), Estimate(0.123, -0.1, 0.2)
    figures = [
        Figure("kid", "KID, by EfficientNet-Lite1", "Distances", "lower", estimate, estimate, "", "good"),
        Figure("memorization", "Copies", "Memorization", "lower", estimate, None, "of held-out images"),
    ]
    evaluation_page.write(
        Report(
            protocol={"fakes": f"100 of {'x' * 99}", "features": "z" * 99, "digest": "y" * 99},
            figures=tuple(figures),
            skipped=("fid: needs 20 images",),
            grids={"Fakes": images},
            closest=(images, images, np.linspace(0, 1, 8)),
            closest_of="training images",
            memorized=(),
        ),
        folder,
    )
    return folder / evaluation_page.PAGE


def write_trial(folder):
    random, labels, arms = np.random.default_rng(0), np.arange(20) % 2, all_arms((1.0,))
    folds = [Fold(labels, np.arange(20), {arm.name: random.dirichlet((1, 1), (1, 20)) for arm in arms})]
    attention = {"images": np.zeros((4, 16, 16, 3), np.uint8), "plain": random.random((4, 2, 2), np.float32)}
    details = {"positive": "malignant", "digest": "y" * 99}
    trial_page.write(folder, judge(folds, arms, positive=1, replicates=20), folds, details, attention, positive=1)
    return folder / trial_page.PAGE


@pytest.mark.parametrize("kind", ["report", "evaluation", "trial"])
def test_pages_are_accessible(kind, make, tab, tmp_path, monkeypatch):
    """Names for what is seen and used, contrast in both colour schemes, and a phone's width."""
    monkeypatch.setattr(page, "draw_plots", lambda record: {"losses": encode_png(np.zeros((9, 16, 3), np.uint8))})
    writers = {"evaluation": write_evaluation, "trial": write_trial, "report": lambda _: write_report(make())}
    url = writers[kind](tmp_path).as_uri()
    try:
        for width, scheme in itertools.product((360, 1200), ("light", "dark")):
            tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
            tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            tab.open(url)
            assert tab.value("document.documentElement.scrollWidth") == width
            assert tab.value(FAINT) == []
        nodes = [node for node in tab.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
        names = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
        assert [role for role, name in names if role in NAMED and not name.strip()] == []
        assert sum(role == "image" for role, _ in names) == tab.value("document.images.length") >= 2
        assert tab.value("[document.documentElement.lang, document.querySelectorAll('h1').length]") == ["en", 1]
        assert tab.complaints == []
        assert tab.requests == [url]
    finally:
        tab.call("Emulation.clearDeviceMetricsOverride")
        tab.call("Emulation.setEmulatedMedia", features=[])


def test_the_live_page_renews_itself_and_keeps_its_place(make, tab):
    files = make()

    def add(step):
        """A picture, upon which the page loads itself anew."""
        tab.value("window.old = true")
        files.picture(step).write_bytes(files.picture(400).read_bytes())
        tab.until("!window.old && document.readyState === 'complete'")

    with Server(files, port=0, refresh_seconds=0.1, max_load=1e9) as live:
        thread = threading.Thread(target=live.serve_forever, args=(0.01,))
        thread.start()
        try:
            tab.open(live.url)
            tab.click("#first")
            tab.click("#forward")
            tab.value("document.getElementById('speed').selectedIndex = 5")
            tab.value("scrollTo({top: 300, behavior: 'instant'})")
            add(500)
            assert tab.step == 100
            assert tab.value("scrollY") == 300
            assert tab.value("document.getElementById('scrub').max") == "5"
            assert tab.value("document.getElementById('speed').value") == "16"
            assert not tab.is_playing
            tab.click("#last")
            add(600)
            assert tab.step == 600  # who looks at the newest goes on doing so
            tab.click("#play")
            add(700)
            assert tab.is_playing
            assert tab.complaints == []
            tab.click("#last")
            files.path.rename(files.path.with_name("moved"))
            tab.until("document.getElementById('connection').textContent === 'the workdir cannot be read'")
            assert tab.is_showing(700)
        finally:
            tab.open("about:blank")
            live.shutdown()
            thread.join()
