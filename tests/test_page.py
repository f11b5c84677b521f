"""The interactive page: what it holds, and, in a real browser, that clicks, keys and the mouse do what they should."""

import json
import re
from typing import Any

import pytest
import torch
from browser import CHROMIUM, Browser

import torchrnn
from torchrnn.seeing import page

TEXT = 'She said "well, what now?" and left.\nHe (the elder) had 23 <b> & so on.\n"No </script>," said he; \\n 7.\n'
H, PLANTED = 6, 3


def watched(**options: Any) -> Any:
    """A layer over the text of which one unit of layer 0 follows the quotes."""
    torch.manual_seed(0)
    inside, marks = 0, []
    for c in TEXT:
        marks.append(1.0 if c == '"' or inside else 0.0)
        inside = 1 - inside if c == '"' else inside
    x = torch.randn(len(TEXT), 1, 4)
    x[:, 0, 0] = torch.tensor(marks)
    layer: Any = torchrnn.LSTM(4, H, num_layers=2, **options)
    with torch.no_grad():
        layer.weight_ih_l0[:, 0] = 0
        for gate, w in enumerate((4.0, 0.0, 4.0, 4.0)):  # the candidate and the gates open in quotes, nothing is kept
            rows = gate * H + PLANTED
            layer.weight_ih_l0[rows], layer.weight_hh_l0[rows] = 0, 0
            layer.weight_ih_l0[rows, 0] = w
            layer.bias_ih_l0[rows], layer.bias_hh_l0[rows] = (-9.0 if gate == 1 else 0.0), 0
    return torchrnn.watch(layer, x)


def held(html: str) -> Any:
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def test_the_page_holds_the_numbers():
    seen = watched(bidirectional=True)
    data = held(seen.page(TEXT).html)
    assert "".join(data["tokens"]) == TEXT
    assert data["names"] == ["h", "c", "i", "f", "g", "o"]
    assert data["unipolar"] == ["i", "f", "o"]
    titles = ["layer 0 forward", "layer 0 backward", "layer 1 forward", "layer 1 backward"]
    assert [part["title"] for part in data["parts"]] == titles
    for k, part in enumerate(data["parts"]):
        for name, series in part["series"].items():
            raw = torch.frombuffer(bytearray(page.base64.b64decode(series["data"])), dtype=torch.int16)
            values = raw.double().view(-1, series["units"]) / 32767 * series["most"]
            expected = getattr(seen["model"].trace, name)[k // 2, k % 2, :, 0].double()
            torch.testing.assert_close(values, expected, rtol=0, atol=series["most"] / 65000)


def test_the_page_is_of_the_steps_that_count(tmp_path):
    layer, x = torchrnn.GRU(3, [4, 2]), torch.randn(5, 2, 3)
    seen = torchrnn.watch(layer, x, lengths=[5, 2])
    made = seen.page(["a", "bc"], row=1)
    data = held(made.html)
    assert [part["series"]["h"]["units"] for part in data["parts"]] == [4, 2]
    made.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == made.html
    assert not re.findall(r"https?://", made.html)
    held(torchrnn.watch(layer, x[:, 0]).page("hello").html)
    with pytest.raises(ValueError, match="tokens must be one for each step: expected 2, got 5"):
        seen.page("hello", row=1)
    with pytest.raises(ValueError, match="row must be below the batch of 2, got 2"):
        seen.page("hello", row=2)
    with pytest.raises(TypeError, match="tokens must be texts, got int"):
        seen.page([1, 2, 3, 4, 5])  # pyright: ignore[reportArgumentType]
    long = torchrnn.watch(torchrnn.RNN(1, 1), torch.zeros(20_001, 1))
    with pytest.raises(ValueError, match="a page shows 1 to 20,000 steps, got 20,001"):
        long.page("x" * 20_001)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("browser")
    seen = watched()
    seen.page(TEXT).save(folder / "page.html")
    with Browser(str(folder / "profile")) as browser:
        browser.size(1100, 760)
        browser.open((folder / "page.html").as_uri())
        yield browser, seen["model"].trace
        assert browser.wrong == []
        assert [address for address in browser.fetched if not address.startswith("file:")] == []


def shown(browser):
    """The table of values at the chosen step and unit."""
    rows = browser.get("[...document.querySelectorAll('#values tr')].map(r => [...r.cells].map(c => c.textContent))")
    return {name: float(value.replace("−", "-")) for name, value in rows}


def check_values(browser, trace, k, t, u):
    found = shown(browser)
    assert list(found) == ["h", "c", "i", "f", "g", "o"]
    for name, value in found.items():
        assert value == pytest.approx(float(getattr(trace, name)[k, 0, t, 0, u]), abs=6e-4)


def test_a_click_chooses_a_step(opened):
    browser, trace = opened
    assert browser.get("document.title") == "LSTM(4, 6, num_layers=2)"
    assert browser.get("document.getElementById('text').textContent").replace("⏎", "") == TEXT
    browser.click("#text span[data-t='12']")
    assert browser.get("document.getElementById('step').textContent") == f"12 of {len(TEXT) - 1}"
    assert browser.get("document.querySelector('span.now').dataset.t") == "12"
    check_values(browser, trace, 0, 12, 0)


def test_the_slider_goes_through_time(opened):
    browser, trace = opened
    browser.click("#time", across=0.5)
    t = int(browser.get("document.getElementById('time').value"))
    assert abs(t - len(TEXT) / 2) < 3
    browser.press("ArrowRight", 39)
    browser.wait(f"document.getElementById('step').textContent.startsWith('{t + 1} of')")
    check_values(browser, trace, 0, t + 1, 0)


def test_the_mouse_shows_the_gates(opened):
    browser, trace = opened
    browser.hover("#text span[data-t='30']")
    browser.wait("document.getElementById('tip').style.display === 'block'")
    lines = browser.get("document.getElementById('tip').textContent").split("\n")
    assert lines[0] == f"step 30, unit 0: {json.dumps(TEXT[30])}"
    for line, name in zip(lines[1:], "hcifgo", strict=True):
        said, value = line.split()
        assert said == name
        assert float(value.replace("−", "-")) == pytest.approx(float(getattr(trace, name)[0, 0, 30, 0, 0]), abs=6e-4)


def test_layer_value_and_unit_are_chosen(opened):
    browser, trace = opened
    browser.get("document.getElementById('part').focus()")
    browser.press("ArrowDown", 40)
    browser.get("document.getElementById('name').focus()")
    browser.type("f")
    browser.click("#units", across=(4 + 0.5) / H)
    browser.wait("document.getElementById('unit').value === '4'")
    assert browser.get("document.getElementById('part').value") == "1"
    assert browser.get("document.getElementById('name').value") == "f"
    browser.click("#text span[data-t='7']")
    check_values(browser, trace, 1, 7, 4)
    assert browser.get("document.getElementById('low').textContent") == "0"
    browser.get("document.getElementById('part').focus()")
    browser.press("ArrowUp", 38)
    browser.get("document.getElementById('name').focus()")
    browser.type("h")
    assert browser.get("document.getElementById('name').value") == "h"


def colour(browser, t):
    text = browser.get(f"document.querySelector(\"#text span[data-t='{t}']\").style.background")
    return tuple(map(int, re.findall(r"\d+", text)))


def test_the_search_finds_the_unit_that_follows_the_quotes(opened):
    browser, trace = opened
    browser.click("#search")
    first = browser.get("document.querySelector('#found button').textContent")
    assert first.startswith(f"layer 0, unit {PLANTED}: ")
    marks = torch.tensor(held_quotes())
    expected = float(torch.corrcoef(torch.stack((marks, trace.h[0, 0, :, 0, PLANTED])))[0, 1])
    assert float(first.split(": ")[1].replace("−", "-")) == pytest.approx(expected, abs=1e-3)
    assert browser.get("document.querySelectorAll('#found button').length") == 8
    browser.click("#found button")
    assert browser.get("document.getElementById('unit').value") == str(PLANTED)
    within, without = TEXT.index("what"), TEXT.index("left")
    assert colour(browser, within)[0] < 120  # blue
    assert colour(browser, without) == (255, 255, 255)


def held_quotes():
    inside, marks = 0, []
    for c in TEXT:
        inside = 1 - inside if c == '"' else inside
        marks.append(1.0 if inside or c == '"' else 0.0)
    return marks


def test_every_pattern_and_the_regular_expression(opened):
    browser, _ = opened
    patterns = browser.get("[...document.getElementById('pattern').options].map(o => o.value)")
    rules: dict[str, Any] = {
        "newline": lambda t: TEXT[t] == "\n",
        "space": lambda t: TEXT[t].isspace(),
        "capital": lambda t: TEXT[t].isupper(),
        "digit": lambda t: TEXT[t].isdigit(),
        "position": lambda t: t,
        "line": lambda t: t - (TEXT.rfind("\n", 0, t) + 1),
        "brackets": lambda t: TEXT.index("(") <= t <= TEXT.index(")"),
        "quotes": lambda t: held_quotes()[t],
    }
    assert set(patterns) == {*rules, "expression"}
    for pattern, rule in rules.items():
        found = browser.get(f"signals[{pattern!r}]()")
        assert found == [int(rule(t)) for t in range(len(TEXT))], pattern
    browser.click("#expression")
    browser.type("[0-9]+")
    browser.press("Enter", 13, "\r")
    assert browser.get("document.getElementById('pattern').value") == "expression"
    assert browser.get("document.querySelectorAll('#found button').length") == 8
    assert browser.get("signals.expression()") == [int(c.isdigit()) for c in TEXT]
    browser.type("(")
    browser.press("Enter", 13, "\r")
    assert browser.get("document.getElementById('wrong').textContent").startswith("This is no regular expression: ")
    browser.get("document.getElementById('expression').value = 'nowhere'")
    browser.click("#search")
    assert "the same at every step" in browser.get("document.getElementById('wrong').textContent")


@pytest.mark.parametrize("width", [1400, 1100, 500])
def test_nothing_overlaps(opened, width):
    browser, _ = opened
    browser.size(width, 760)
    browser.get("document.getElementById('pattern').value = 'space'")
    browser.click("#search")
    assert browser.get("document.documentElement.scrollWidth <= innerWidth")
    boxes = browser.get(
        "[...document.querySelectorAll('h1, header label, #legend, #text, h2, #values, canvas, aside .small, #pattern,"
        " #search, #expression, #found li')].map(e => { const r = e.getBoundingClientRect();"
        " return [e.id || e.textContent, r.left, r.top, r.right, r.bottom]; })"
    )
    boxes = [b for b in boxes if b[3] > b[1] and b[4] > b[2]]
    for k, (name, left, top, right, bottom) in enumerate(boxes):
        for other, left_2, top_2, right_2, bottom_2 in boxes[k + 1 :]:
            apart = right <= left_2 + 1 or right_2 <= left + 1 or bottom <= top_2 + 1 or bottom_2 <= top + 1
            assert apart, (name, other)
    browser.size(1100, 760)
