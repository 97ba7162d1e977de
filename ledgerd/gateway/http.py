"""The HTTP side door: is the daemon alive, is it ready, its metrics. On a port of its own, supervised on its own."""

from __future__ import annotations

from collections.abc import Callable

import hypercorn
import hypercorn.trio
import trio
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ledgerd.config import Config

GRACEFUL_TIMEOUT_S = 1.0
KEEP_ALIVE_TIMEOUT_S = 5.0


def application(ready: Callable[[], tuple[bool, str]]) -> Starlette:
    """The pages. ``ready`` answers whether the daemon serves and, if not, why in a few words."""

    async def livez(request: Request) -> Response:  # noqa: ARG001
        return PlainTextResponse("alive\n")

    async def readyz(request: Request) -> Response:  # noqa: ARG001
        serves, reason = ready()
        return PlainTextResponse(f"{reason}\n", status_code=200 if serves else 503)

    async def metrics(request: Request) -> Response:  # noqa: ARG001
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])


async def serve_http(
    config: Config,
    *,
    ready: Callable[[], tuple[bool, str]],
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; reports the URLs it serves. Raises OSError if the address cannot be bound."""
    settings = hypercorn.Config()
    settings.bind = [config.http]
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
