"""The HTTP side door: is the daemon alive, is it ready, its metrics. On a port of its own, supervised on its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import hypercorn
import hypercorn.trio
import trio
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Metric, generate_latest
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ledgerd.config import Config
from ledgerd.listeners import BACKLOG

GRACEFUL_TIMEOUT_S = 1.0
KEEP_ALIVE_TIMEOUT_S = 5.0

METRICS_PAUSE_S = 0.2
"""Between two pages of metrics: whoever reaches this door may ask as often as he likes."""


class MetricsPage:
    """The page of metrics. Making it takes some ten milliseconds of everybody's time, whoever asks, and as often: so
    others run in between, and however many ask, it is made once for all of them, a few times a second at most.
    """

    def __init__(self) -> None:
        self._turn = trio.Lock()
        self._begun_at = -math.inf
        self._text = b""

    async def read(self) -> bytes:
        """The page as it was begun after this was called."""
        asked_at = trio.current_time()
        async with self._turn:
            if self._begun_at <= asked_at:
                await trio.sleep_until(self._begun_at + METRICS_PAUSE_S)
                self._begun_at = trio.current_time()
                self._text = await _rendered()
            return self._text


async def _rendered() -> bytes:
    parts = []
    for family in REGISTRY.collect():
        parts.append(generate_latest(_Only(family)))
        await trio.lowlevel.checkpoint()
    return b"".join(parts)


class _Only(Collector):
    """One metric, as a registry."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        """The metric."""
        return [self._family]


def application(ready: Callable[[], tuple[bool, str]]) -> Starlette:
    """The pages. ``ready`` answers whether the daemon serves and, if not, why in a few words."""

    async def livez(request: Request) -> Response:  # noqa: ARG001
        return PlainTextResponse("alive\n")

    async def readyz(request: Request) -> Response:  # noqa: ARG001
        serves, reason = ready()
        return PlainTextResponse(f"{reason}\n", status_code=200 if serves else 503)

    page = MetricsPage()

    async def metrics(request: Request) -> Response:  # noqa: ARG001
        return Response(await page.read(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


async def serve_http(
    config: Config,
    *,
    ready: Callable[[], tuple[bool, str]],
    binds: Sequence[str] = (),
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; reports the URLs it serves. Raises OSError if the address cannot be bound.

    ``binds`` are sockets in the place of the configured address, as Hypercorn names them: ``fd://N``.
    """
    settings = hypercorn.Config()
    settings.bind = list(binds) or [config.http]
    settings.backlog = BACKLOG
    settings.accesslog = None
    settings.errorlog = None
    settings.graceful_timeout = GRACEFUL_TIMEOUT_S
    settings.keep_alive_timeout = KEEP_ALIVE_TIMEOUT_S
    settings.include_server_header = False
    # Without a trigger of its own Hypercorn would listen for signals, which are the daemon's.
    await hypercorn.trio.serve(
        application(ready),  # type: ignore[arg-type]
        settings,
        shutdown_trigger=trio.sleep_forever,
        task_status=task_status,
    )
