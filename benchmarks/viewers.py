"""
Browsers that watch a log, without windows: python -m benchmarks.viewers URL COOKIE N.

Prints a line once all are connected, and when the log is over, for each of them, a list
of pairs: the monotonic time at which an event was complete, and its last row.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time

from urllib.parse import urlsplit


_LAST_ROW = re.compile(rb"id: \d+\.\d+\.(\d+)\n")
_OVER = b"event: over"
Told = list[tuple[int, int]]


async def watch(url: str, cookie: str, connected: asyncio.Semaphore) -> Told:
    """Follow one stream to its end."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port, limit=1 << 24
    )
    writer.write(
        f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nCookie: {cookie}\r\n"
        "Accept: text/event-stream\r\n\r\n".encode()
    )
    told: Told = []
    rest = await reader.readuntil(b"retry: ")
    if not rest.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(rest[:200].decode())
    connected.release()
    rest = b""
    while data := await reader.read(1 << 20):
        *events, rest = (rest + data).split(b"\n\n")
        at = time.monotonic_ns()
        for event in events:
            if found := _LAST_ROW.search(event, 0, 200):
                told.append((at, int(found[1])))
            elif _OVER in event:
                writer.close()
                return told
    raise RuntimeError("the stream ended before the log")


async def watch_all(url: str, cookie: str, number: int) -> None:
    connected = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(watch(url, cookie, connected)) for _ in range(number)
        ]
        for _ in range(number):
            await connected.acquire()
        print("connected", flush=True)
    print(json.dumps([task.result() for task in tasks]), flush=True)


if __name__ == "__main__":
    asyncio.run(watch_all(sys.argv[1], sys.argv[2], int(sys.argv[3])))
