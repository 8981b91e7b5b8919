"""Who may reach the labelling page and what of it: hosts, logins, and the few paths that it needs."""

import asyncio
import secrets
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
WRONG_LOGIN_SECONDS = 1.0
PATHS = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json")
FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/")
CALLS = ("queue/join", "queue/data", "cancel", "reset", "startup-events", "login_check", "user", "app_id", "theme.css")
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; manifest-src 'self'; base-uri 'self'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""The browser itself loads nothing from elsewhere; Gradio's own page has inline scripts and evaluates templates."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """An ASGI application around another, which sees only requests that are meant for it."""

    app: ASGIApp
    logins: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Passwords by name; empty: everybody who reaches the page may label."""
    hosts: tuple[str, ...] = ()
    """Names under which the page is asked for, against rebound addresses; empty: any."""
    _guessing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False, compare=False)
    """Wrong logins wait one after the other, so that guessing at once is no faster."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        name = self._name(headers)
        refusal = self._refusal(str(scope["path"]), headers, name)
        if refusal is not None and refusal.status_code == 401 and "authorization" in headers:
            async with self._guessing:
                await asyncio.sleep(WRONG_LOGIN_SECONDS)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (refusal or self.app)({**scope, "annotator": name}, receive, send_guarded)

    def _refusal(self, path: str, headers: Headers, name: str | None) -> Response | None:
        host = headers.get("host", "")
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return PlainTextResponse(f"this page answers to {', '.join(self.hosts)}", 403)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("this page answers to itself only", 403)
        if self.logins and name is None:
            challenge = {"www-authenticate": 'Basic realm="Pairwright", charset="UTF-8"'}
            return PlainTextResponse("name and password are needed", 401, challenge)
        if path not in PATHS and not path.startswith(FOLDERS) and path not in {f"/gradio_api/{c}" for c in CALLS}:
            return PlainTextResponse("not found", 404)
        return None

    def _name(self, headers: Headers) -> str | None:
        """Whose name and password a request carries."""
        scheme, _, code = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, _, password = b64decode(code, validate=True).decode().partition(":")
        except ValueError:
            return None
        wanted = self.logins.get(name, "")
        same = secrets.compare_digest(password.encode(), wanted.encode())
        return name if same and wanted else None


def annotator_of(request: Request) -> str | None:
    """The name that a request was let in under, for Gradio."""
    name: str | None = request.scope.get("annotator")
    return name
