"""A headless Chromium that tests drive over its DevTools protocol.

Contract: `browser()` yields a `Tab` on an empty profile of its own; both go at the end. Only what a test
serves on loopback can be reached: every other name resolves to nothing. Errors of the page's scripts, and
what the browser itself complains of, are kept in `Tab.complaints`, the addresses asked for in `Tab.requests`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

_PATIENCE = 30.0


class Tab:
    """One page of the browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._socket, self._session = socket, session
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.create_task(self._read())
        self.complaints: list[str] = []
        self.requests: list[str] = []

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json(
            {"id": number, "method": method, "params": parameters, "sessionId": self._session}
        )
        return await asyncio.wait_for(answer, _PATIENCE)

    async def prepare(self) -> None:
        """Listen to what goes wrong."""
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Go there."""
        await self.send("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        done = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    async def until(self, script: str) -> Any:
        """The value of an expression once it is true."""
        for _ in range(int(_PATIENCE * 20)):
            with contextlib.suppress(AssertionError):
                if found := await self.run(script):
                    return found
            await asyncio.sleep(0.05)
        text = await self.run("document.body.innerText.slice(0, 2000)")
        raise AssertionError(f"{script} does not become true; {self.complaints}; the page says:\n{text}")

    async def size(self, width: int, height: int, *, dark: bool = False, media: str = "") -> None:
        """The window's size, and what the page is told to prefer."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])

    async def press(self, key: str, text: str = "") -> None:
        """One key; `text` where it types something."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        common = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        if key == "Enter":
            text = "\r"
        await self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    async def type(self, text: str) -> None:
        """Into what has the focus."""
        await self.send("Input.insertText", text=text)

    async def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        sizes = (await self.send("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": sizes["width"], "height": min(sizes["height"], 4000), "scale": 1}
        shot = await self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        await asyncio.to_thread(path.write_bytes, base64.b64decode(shot["data"]))

    async def pdf(self) -> bytes:
        """As it would be printed."""
        done = await self.send("Page.printToPDF", printBackground=True)
        return base64.b64decode(done["data"])

    async def close(self) -> None:
        """Stop listening."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if said.get("id") in self._answers and said.get("sessionId") == self._session:
                answer = self._answers.pop(said["id"])
                if not answer.done():
                    answer.set_result(said.get("result", {"error": said.get("error")}))
                continue
            told = said.get("params", {})
            match said.get("method"):
                case "Runtime.exceptionThrown":
                    self.complaints.append(str(told["exceptionDetails"].get("exception", told)))
                case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                    self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
                case "Network.requestWillBeSent":
                    self.requests.append(told["request"]["url"])


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """A tab on about:blank."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            "chromium",
            "--headless=new",
            "--no-sandbox",  # tests run as root
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-extensions",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        try:
            endpoint = await _endpoint(Path(profile), process)
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(endpoint, max_msg_size=0) as socket,
            ):
                tab = Tab(socket, await _attach(socket))
                try:
                    await tab.prepare()
                    yield tab
                finally:
                    await tab.close()
        finally:
            process.kill()
            await process.wait()


async def _endpoint(profile: Path, process: asyncio.subprocess.Process) -> str:
    file = profile / "DevToolsActivePort"
    for _ in range(int(_PATIENCE * 10)):
        if file.exists() and len(lines := file.read_text().splitlines()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        assert process.returncode is None, "chromium has ended at once"
        await asyncio.sleep(0.1)
    raise AssertionError("chromium does not start")


async def _attach(socket: aiohttp.ClientWebSocketResponse) -> str:
    """The session of the first tab."""

    async def ask(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        await socket.send_json({"id": number, "method": method, "params": parameters})
        while (said := await asyncio.wait_for(socket.receive_json(), _PATIENCE)).get("id") != number:
            pass
        result: dict[str, Any] = said["result"]
        return result

    targets = await ask(1, "Target.getTargets")
    page = next(one for one in targets["targetInfos"] if one["type"] == "page")
    attached = await ask(2, "Target.attachToTarget", targetId=page["targetId"], flatten=True)
    return str(attached["sessionId"])
