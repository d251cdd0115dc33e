"""Opens reports in a browser, as wide as a phone and as a screen, in both themes."""

import os
import re
import shutil
import subprocess
from html import escape

import numpy as np
import pytest
from PIL import Image

from fedjx.data import FederatedData
from fedjx.experiment.report import report
from tests.experiment.histories import history

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE = 390

# Shows a page in a frame, since a browser's own window is no narrower than 500 pixels, and says how it lies in it.
FRAME = """<!doctype html>
<meta name="color-scheme" content="light dark">
<body style="margin: 0">
<iframe id="frame" style="border: 0; width: {width}px; height: 1600px" srcdoc="{page}"></iframe>
<pre id="said"></pre>
<script>
addEventListener("load", () => {{
  const page = frame.contentDocument.documentElement;
  const colour = getComputedStyle(frame.contentDocument.body).color;
  const pictures = [...page.querySelectorAll("figure svg")];
  const found = [
    page.scrollWidth, frame.contentWindow.innerWidth, pictures.length,
    pictures.filter((picture) => picture.getBoundingClientRect().height > 50).length,
    [...page.querySelectorAll("svg text")].filter((text) => getComputedStyle(text).fill !== colour).length,
  ];
  said.textContent = found.join(" ");
}});
</script>
"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(f"CI opens reports in a browser; got none of {', '.join(BROWSERS)}. Install one.")
    if found is None:
        pytest.skip(f"reports are opened in a browser; got none of {', '.join(BROWSERS)}.")
    return found


def shown(browser, page, path, *, width=PHONE, dark=False):
    """Returns how a page lies in its frame, and its pixels.

    That is how wide the page and its frame are, how many pictures it has and shows, how many texts in them are not of
    the page's colour, and int16 ``[H, W, 3]``.
    """
    (path / "frame.html").write_text(FRAME.format(width=width, page=escape(page)), encoding="utf-8")
    picture = path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={path / 'profile'}", f"--window-size={max(width, 500)},1600", f"--screenshot={picture}"]
    flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom"]
    command = [browser, *flags, (path / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ":CONSOLE" not in done.stderr, done.stderr  # an error of the page, or something that its policy refuses
    said = re.search(r'<pre id="said">([\d ]+)</pre>', done.stdout)
    assert said, done.stdout[-500:]
    with Image.open(picture) as image:
        return *map(int, said[1].split()), np.asarray(image.convert("RGB"), np.int16)[:, :width]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    names = ("fed_avg", "a_very_long_name_without_any_space_in_it_" * 2)
    runs = {name: [history(seed=s, rate=0.1 * (1 + k)) for s in range(2)] for k, name in enumerate(names)}
    data = FederatedData({"y": np.arange(60) % 7}, np.array([0, 10, 40, 60]))
    gains = {"accuracy": ([0.2, 0.5, 0.9], {"tuned": [0.6, 0.4, 0.95], "mixed": [0.3, 0.5, 0.9]})}
    report(runs, path, target=0.5, data=data, personalised=gains, title="title" * 20)
    return path.read_text(encoding="utf-8")


def near(pixels, colour):
    """Counts the pixels of a colour."""
    return int((np.abs(pixels - np.array(colour)).max(-1) < 12).sum())


def test_a_phone_in_the_dark(browser, page, tmp_path):
    page_width, frame_width, num_pictures, num_shown, num_other, pixels = shown(browser, page, tmp_path, dark=True)
    assert page_width <= frame_width == PHONE
    assert num_shown == num_pictures == page.count("<figure")
    assert num_other == 0
    luminance = pixels.mean(-1)
    assert np.quantile(luminance, 0.7) < 60
    assert (luminance > 180).sum() > 5000  # text, which is light
    assert near(pixels, (0x54, 0xA9, 0xEF)) > 300  # the first series, in the colour of this theme
    assert near(pixels, (0x00, 0x69, 0xBA)) < 30


def test_a_screen_in_the_light(browser, page, tmp_path):
    page_width, frame_width, num_pictures, num_shown, num_other, pixels = shown(browser, page, tmp_path, width=1280)
    assert page_width <= frame_width == 1280
    assert num_shown == num_pictures
    assert num_other == 0
    luminance = pixels.mean(-1)
    assert np.quantile(luminance, 0.3) > 200
    assert (luminance < 90).sum() > 5000
    assert near(pixels, (0x00, 0x69, 0xBA)) > 300
    assert near(pixels, (0x54, 0xA9, 0xEF)) < 30


def test_these_tests_can_fail(browser, page, tmp_path):
    """Of a page that is too wide, with a script, and with colours that do not take the theme."""
    wrong = page.replace("</main>", '<p style="width: 600px">x</p></main>')
    wrong = wrong.replace("(prefers-color-scheme: dark)", "print").replace(
        "svg text { fill: currentColor", "svg text { fill: red"
    )
    page_width, frame_width, _, _, num_other, pixels = shown(browser, wrong, tmp_path, dark=True)
    assert page_width > frame_width == PHONE
    assert num_other > 100
    assert np.quantile(pixels.mean(-1), 0.3) > 200
    with pytest.raises(AssertionError, match="CONSOLE"):
        shown(browser, page.replace("</main>", "<script>1</script></main>"), tmp_path)
