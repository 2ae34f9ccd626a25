# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium for tests of pages, driven over its debugging pipe without other packages."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_TIMEOUT = 120  # seconds for an answer, on a busy machine


class Browser:
    """One page at a time. `show` loads a file at a width; `ask` evaluates an expression of JavaScript there."""

    def __init__(self, folder: Path) -> None:
        to_it, self._write = os.pipe()
        self._read, from_it = os.pipe()
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]

        def place() -> None:  # the protocol's pipes are descriptors 3 and 4
            low, high = os.dup(to_it), os.dup(from_it)
            os.dup2(low, 3)
            os.dup2(high, 4)

        self._process = subprocess.Popen(
            command, preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_it)
        os.close(from_it)
        self._rest, self._number, self._session = b"", 0, None
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        self._call("Page.enable")

    def show(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url=path.resolve().as_uri())
        self.ask(
            "new Promise((done) => document.readyState === 'complete' ? done(0) : (window.onload = () => done(0)))"
        )

    def ask(self, expression: str) -> object:
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path, top: int = 0, height: int = 900) -> None:
        """Save a part of the page as PNG."""
        clip = {"x": 0, "y": top, "width": self.ask("innerWidth"), "height": height, "scale": 1}
        shot = self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._write)
            os.close(self._read)
        self._process.kill()
        self._process.wait()

    def _call(self, method: str, **parameters: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            line, found, rest = self._rest.partition(b"\0")
            if not found:
                assert select.select([self._read], [], [], _TIMEOUT)[0], f"{CHROMIUM} does not answer {method}"
                more = os.read(self._read, 1 << 20)
                assert more, f"{CHROMIUM} ended"
                self._rest += more
                continue
            self._rest = rest
            answer = json.loads(line)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
