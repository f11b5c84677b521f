"""A real Chromium without a window, led through a pipe: pages are opened, clicked and read as by a person."""

import json
import os
import shutil
import subprocess
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One tab. What goes wrong in the page, and what it fetches, is kept."""

    def __init__(self, profile: str) -> None:
        to_read, to_write = os.pipe(), os.pipe()
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", f"--user-data-dir={profile}", "--remote-debugging-pipe",
        ]  # fmt: skip
        # the browser reads from its file 3 and writes to its file 4
        script = f'exec "$@" 3<&{to_read[0]} 4>&{to_write[1]}'
        files, silent = (to_read[0], to_write[1]), subprocess.DEVNULL
        command = ["bash", "-c", script, "bash", *command]
        self.process = subprocess.Popen(command, pass_fds=files, stderr=silent, stdout=silent)
        for file in files:
            os.close(file)
        self.output, self.input = os.fdopen(to_read[1], "wb", 0), os.fdopen(to_write[0], "rb", 0)
        self.rest, self.number, self.session = b"", 0, None
        self.wrong: list[str] = []
        self.fetched: list[str] = []
        self.loaded = False
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Network"):
            self.ask(f"{part}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()
        self.input.close()

    def ask(self, method: str, **params: Any) -> Any:
        """Send a command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self.output.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def receive(self) -> Any:
        """The next message; events are noted."""
        while b"\0" not in self.rest:
            more = self.input.read(1 << 16)
            assert more, "the browser has ended"
            self.rest += more
        first, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(first)
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown" or (method == "Runtime.consoleAPICalled" and params["type"] == "error"):
            self.wrong.append(json.dumps(params))
        elif method == "Network.requestWillBeSent":
            self.fetched.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loaded = True
        return message

    def open(self, address: str) -> None:
        """Open an address and wait until it is there."""
        self.loaded = False
        self.ask("Page.navigate", url=address)
        while not self.loaded:
            self.receive()

    def size(self, width: int, height: int) -> None:
        """The size of the window."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def get(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def middle(self, selector: str, across: float = 0.5) -> tuple[float, float]:
        """A point of an element, scrolled into sight."""
        x, y, width, height = self.get(
            f"(e => {{ e.scrollIntoView({{block: 'nearest'}}); const r = e.getBoundingClientRect();"
            f" return [r.x, r.y, r.width, r.height]; }})(document.querySelector({json.dumps(selector)}))"
        )
        return x + width * across, y + height / 2

    def click(self, selector: str, across: float = 0.5) -> None:
        """A click with the left button."""
        x, y = self.middle(selector, across)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def hover(self, selector: str) -> None:
        """The mouse over an element."""
        x, y = self.middle(selector)
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def type(self, text: str) -> None:
        """Keys, where the focus is."""
        for key in text:
            self.ask("Input.dispatchKeyEvent", type="keyDown", text=key, key=key)
            self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key without a character, such as an arrow."""
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, text=text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def wait(self, expression: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + 10
        while not self.get(expression):
            assert time.monotonic() < end, f"not within 10 s: {expression}"
            time.sleep(0.05)
