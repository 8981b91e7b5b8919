"""The server of the labelling page: on loopback for whoever sits there, elsewhere for logins only."""

import contextlib
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from cluster.errors import InputError
from cluster.preflight import is_loopback, mask_passwords
from cluster.settings import Settings
from cluster.storage import Store
from flows.page.blocks import page
from flows.page.gate import LOOPBACK, Gate, annotator_of
from flows.page.logins import VARIABLE, read_logins
from flows.report import lineages_of
from tasks.labellers.ledger import Ledger

if TYPE_CHECKING:
    from gradio import Blocks

STATIC = Path(__file__)
SECONDS_TO_END = 2
"""How long open pages may keep a server that ends."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the page is served, and to whom."""

    host: str = "127.0.0.1"
    port: int = 7861
    login: Path | None = None
    """File of logins."""


def serve_page(lineage: str, place: Place, settings: Settings) -> None:
    """Serve the page of a lineage until interrupted.

    Raises:
        InputError: the lineage, the logins or the address don't fit.
    """
    logins = read_logins(place.login, os.environ)
    ledger = Ledger(url=settings.ledger)
    check_lineage(lineage, ledger, Store(settings.store))
    with listen(place.host, place.port, logins=logins) as on:
        for line in (f"label at {_address(on)}", *_audience(place, logins), "Ctrl-C stops the page"):
            print(line, flush=True)
        serve(page(ledger, lineage, completed=partial(go_on, lineage, settings)), on, logins=logins, host=place.host)
    print("stopped", flush=True)


def check_lineage(lineage: str, ledger: Ledger, store: Store) -> None:
    """See that there is such a lineage; it may have nothing to label just now.

    Raises:
        InputError: nobody knows it; those with open questions are listed.
    """
    waiting = sorted({one.lineage for one in ledger.open_questions()})
    if lineage not in {*waiting, *ledger.lineages(), *lineages_of(store)}:
        raise InputError(
            f"no lineage {lineage!r} is known: lineages with open questions are {', '.join(waiting) or 'none'}"
        )


def go_on(lineage: str, settings: Settings) -> str:
    """Resume the lineage's parked round; gives what an annotator is told. The answers are in whatever comes of it."""
    from flows.parking import resume_ready

    try:
        found = resume_ready(settings, [lineage])
    except (InputError, RuntimeError) as error:  # the second is Prefect's, where its server doesn't come up
        return f"The round couldn't be resumed ({mask_passwords(str(error))}); your answers are saved."
    said = "; ".join("The round goes on." if one.resumed else f"The round: {one.said}." for one in found)
    return mask_passwords(said)


def listen(host: str, port: int, *, logins: Mapping[str, str]) -> socket.socket:
    """Take the port.

    Raises:
        InputError: others could reach it and there are no logins, or the port can't be had.
    """
    if not logins and not is_loopback(host):
        raise InputError(
            f"{host} can be reached by others, and there are no logins: name them with --login FILE "
            f"(lines of name:password) or {VARIABLE}=name:password,..., or stay on 127.0.0.1"
        )
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"the labelling page can't have port {port} of {host} ({error}): "
            "stop what listens there, or name another with --port or --host"
        ) from error


def hosts_of(host: str, logins: Mapping[str, str]) -> tuple[str, ...]:
    """The names that a page without logins answers to; with logins any, such as that of a proxy before it."""
    return () if logins else (*LOOPBACK, host)


def serve(blocks: "Blocks", on: socket.socket, *, logins: Mapping[str, str], host: str) -> None:
    """Serve the page until interrupted; the socket is closed then."""
    import uvicorn

    gate = Gate(app=_application(blocks, by_login=bool(logins)), logins=logins, hosts=hosts_of(host, logins))
    config = uvicorn.Config(gate, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_END, server_header=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[on])


def _application(blocks: "Blocks", *, by_login: bool) -> ASGIApp:
    """Gradio without anything that reaches beyond the page: no links, no uploads, no history, no telemetry."""
    import gradio as gr
    from fastapi import FastAPI

    fonts = ["system-ui", "sans-serif"]
    app: ASGIApp = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        auth_dependency=annotator_of if by_login else None,
        theme=gr.themes.Base(font=fonts, font_mono=["monospace"]),
        css=STATIC.with_name("page.css").read_text(encoding="utf-8"),
        head=f"<script>{STATIC.with_name('page.js').read_text(encoding='utf-8')}</script>",
    )
    return app


def _audience(place: Place, logins: Mapping[str, str]) -> list[str]:
    if not logins:
        return ["everybody on this machine can label, under a name"]
    bare = "passwords travel as they are: put a proxy with TLS before it"
    return [f"logins: {', '.join(logins)}", *([] if is_loopback(place.host) else [bare])]


def _address(on: socket.socket) -> str:
    host, port = on.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
