"""The addresses of the page, and who may ask for them.

::

    GET  /                      the page
    GET  /api/runs?ticked=...   the runs, and what is new of those that are ticked
    GET  /api/runs/NAME         what the canvas needs to know of a run
    POST /api/runs/NAME         a picture; what the run's network sees in it
    GET  /runs/NAME/report      the run's report.html

Any web page that is open in the same browser can send requests to this machine. So a request has to
name this server as its host, which no other page's name can lead to, and a picture must come from
the page itself. A report may come from somebody else: it runs in a sandbox, as a page of nobody.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feedax.errors import FeedaxError
from feedax.show.networks import Networks
from feedax.show.runs import NoSuchRunError, Runs
from feedax.storage.plain_json import is_count, is_list_of, is_text, load_json
from feedax.web import page

if TYPE_CHECKING:  # it loads JAX, and SciPy
    from feedax.report.trained_run import TrainedRun

MOST_BYTES = 2**25
"""Of a picture's file."""

MOST_TICKED = 8
"""Runs that are compared at once: as many as there are colours."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
PAGE_POLICY = (
    POLICY + "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
REPORT_POLICY = (
    POLICY + "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "sandbox allow-scripts allow-modals"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": PAGE_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def make_app(runs: Runs, open_run: "Callable[[Path], TrainedRun]", port: int) -> Starlette:
    """The page over a folder of runs, as an ASGI application.

    Args:
        runs: of the folder.
        open_run: opens a run with its network, by its folder; it is called when a picture comes.
        port: that the page is served on, of 127.0.0.1.
    """
    networks = Networks(runs, open_run)

    def show(request: Request) -> Response:
        data = {"only": runs.only, "most_ticked": MOST_TICKED, "most_bytes": MOST_BYTES}
        title = "Runs" if runs.only is None else runs.only
        return HTMLResponse(page("show.html.jinja", data, title=title, folder=str(runs.folder)))

    def listing(request: Request) -> Response:
        try:
            ticked = _ticked(request.query_params.get("ticked", "[]"))
        except ValueError as error:
            return JSONResponse({"error": f"{error}"}, 400)
        answer = runs.listing()
        answer["ticked"] = {}
        for name, version, offset in ticked:
            try:
                answer["ticked"][name] = runs.rows(name, version, offset)
            except NoSuchRunError:
                continue  # it was removed meanwhile, and is not in the list either
        return JSONResponse(answer)

    def report(request: Request) -> Response:
        content = runs.report(request.path_params["name"])
        return HTMLResponse(content, headers={"Content-Security-Policy": REPORT_POLICY})

    def canvas(request: Request) -> Response:
        return _answered(networks.canvas, request.path_params["name"])

    async def picture(request: Request) -> Response:
        content = bytearray()
        async for piece in request.stream():
            content += piece
            if len(content) > MOST_BYTES:
                sentence = f"a picture must have at most {MOST_BYTES:,} bytes; make it smaller"
                return JSONResponse({"error": sentence}, 413, {"Connection": "close"})
        return await run_in_threadpool(
            _answered, networks.answer, request.path_params["name"], bytes(content)
        )

    return Starlette(
        routes=[
            Route("/", show),
            Route("/api/runs", listing),
            Route("/api/runs/{name}", canvas),
            Route("/api/runs/{name}", picture, methods=["POST"]),
            Route("/runs/{name}/report", report),
        ],
        middleware=[Middleware(Guard, port=port)],
        exception_handlers={NoSuchRunError: _is_not_there},
    )


class Guard:
    """Refuses requests that other pages may have sent, and says to browsers what is forbidden."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        ports = (f":{port}",) if port != 80 else ("", ":80")
        self._hosts = {f"{host}{end}" for host in ("127.0.0.1", "localhost") for end in ports}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope["method"], Headers(scope=scope))
        app = self._app if refusal is None else PlainTextResponse(refusal, 403)
        await app(scope, receive, send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> str | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return f"The host must be one of {', '.join(sorted(self._hosts))}.\n"
        if method in ("GET", "HEAD"):
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if site not in (None, "same-origin") or origin not in (None, f"http://{hosts[0]}"):
            return "It must be sent by this page, and not by another one.\n"
        if origin is None and site is None:
            return "It must say by an Origin that this page has sent it.\n"
        return None


def _ticked(text: str) -> list[tuple[str, str, int]]:
    """Of each ticked run the name, and the version and the offset of what is known of it.

    Raises:
        ValueError: the text is something else.
    """
    found = load_json(text.encode())
    are_right = is_list_of(
        lambda one: (
            isinstance(one, list)
            and len(one) == 3
            and is_text(one[0])
            and is_text(one[1])
            and is_count(one[2])
        )
    )
    if not are_right(found) or len(found) > MOST_TICKED:
        raise ValueError(f"ticked must be at most {MOST_TICKED} of [name, version, offset]")
    return [(name, version, offset) for name, version, offset in found]


def _answered(ask: Callable[..., dict[str, Any]], *arguments: Any) -> Response:
    try:
        return JSONResponse(ask(*arguments))
    except FeedaxError as error:
        return JSONResponse({"error": str(error)})  # that is an answer, too: of a blank picture


def _is_not_there(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 404)
