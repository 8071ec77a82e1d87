"""`handful serve`: the page for annotating, learning, segmenting and reviewing a cohort in a browser."""

from __future__ import annotations

import asyncio
import secrets
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

import typer

from handful.cli import options
from handful.cli.terminal import print_lines, print_note
from handful.errors import SettingsError

if TYPE_CHECKING:
    import uvicorn

PORT = 8765


def serve(
    cohort: Annotated[Path, typer.Argument(help="Cohort folder, with scans in images/; a new, empty one is fine.")],
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = PORT,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Others than this machine need a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str,
        typer.Option(envvar="HANDFUL_TOKEN", help="Secret that requests must bear. Default: a new one where needed."),
    ] = "",
    allow_origin: Annotated[
        list[str], typer.Option(help="Address of a viewer whose pages may call, such as http://localhost:3000.")
    ] = [],  # noqa: B006
    backbone: options.Backbone = "handful-tiny",
    device: options.Device = "auto",
    learn: Annotated[
        bool, typer.Option("--learn", help="Let an auxiliary network learn from each finished slice.")
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Annotate, learn, segment and review in a browser.

    Example: `handful serve my_cohort`, which prints the address of the page

    Everything is kept in the cohort folder: finished slices as label maps in `labels/`, all else in `.handful/service`.
    It is on disk before a click is answered, so that nothing is lost if the service is stopped, by Ctrl-C or worse.
    """
    from handful.jobs.lock import locked
    from handful.service.folder import require_cohort_folder

    require_cohort_folder(cohort)
    try:
        import uvicorn

        from handful.service.app import ServiceConfig, create_app
        from handful.service.security import LOOPBACK, Access
        from handful.service.workspace import SERVICE
    except ModuleNotFoundError as error:
        raise SettingsError(f"the page needs {error.name}; install it by: pip install 'handful[serve]'") from error
    secret = token or (None if host in LOOPBACK else secrets.token_urlsafe(24))
    access = Access(host=host, token=secret, origins=tuple(allow_origin))
    config = ServiceConfig(cohort=cohort, backbone=backbone, device=device, access=access, learning=learn)
    with locked(cohort / SERVICE):  # two services would write over each other's steps
        app = create_app(config)
        settings = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, server_header=False)
        _Server(settings, secret, open_page).run()


class _Server:
    """Runs the service and prints the address of the page once it answers."""

    def __init__(self, settings: uvicorn.Config, token: str | None, open_page: bool) -> None:
        self.settings, self.token, self.open_page = settings, token, open_page

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        import uvicorn

        server = uvicorn.Server(self.settings)
        running = asyncio.create_task(server.serve())
        while not server.started and not running.done():
            await asyncio.sleep(0.05)
        if server.started:
            self._announce(server.servers[0].sockets[0].getsockname()[1])
        await running

    def _announce(self, port: int) -> None:
        host = self.settings.host
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{port}/" + (f"?token={quote(self.token, safe='')}" if self.token else "")
        print_lines(f"the page: {address}", "stop it by Ctrl-C")
        if self.token:
            print_note("connections are not encrypted; use a tunnel or a proxy with TLS on networks of others")
        if self.open_page:
            webbrowser.open(address)
