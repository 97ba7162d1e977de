from __future__ import annotations

import pytest
import trio
from prometheus_client import REGISTRY

from ledgerd.config import Config
from ledgerd.gateway import http
from ledgerd.gateway.http import serve_http
from ledgerd.metrics import NOTIFICATIONS_IGNORED


async def get(url: str, path: str) -> tuple[int, str]:
    host, _, port = url.removeprefix("http://").partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        async for data in stream:
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def test_the_page_of_metrics_is_made_once_for_all_who_ask_and_is_newer_than_the_question(autojump_clock) -> None:
    page, asked = http.MetricsPage(), []

    async def ask() -> None:
        asked.append(await page.read())

    await page.read()
    NOTIFICATIONS_IGNORED.inc()
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
    assert trio.current_time() == pytest.approx(http.METRICS_PAUSE_S)
    assert len({id(text) for text in asked}) == 1
    now = REGISTRY.get_sample_value("ledgerd_notifications_ignored_total")
    assert f"ledgerd_notifications_ignored_total {now}".encode() in asked[0]


async def test_the_side_door_tells_life_readiness_and_metrics() -> None:
    state = [(False, "the database is away")]
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[list[str]]) -> None:
            await serve_http(Config(http="127.0.0.1:0"), ready=lambda: state[0], task_status=task_status)

        (url,) = await nursery.start(serve)
        assert await get(url, "/livez") == (200, "alive\n")
        assert await get(url, "/readyz") == (503, "the database is away\n")
        state[0] = (True, "ready")
        assert await get(url, "/readyz") == (200, "ready\n")
        status, text = await get(url, "/metrics")
        assert status == 200
        assert "ledgerd_requests_total" in text
        assert (await get(url, "/other"))[0] == 404
        nursery.cancel_scope.cancel()
