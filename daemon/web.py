"""The page's server: a thread of the supervisor, as the settings want it."""

from __future__ import annotations

import os
import threading
from errno import EAFNOSUPPORT
from typing import TYPE_CHECKING, Final

import structlog

from daemon.job import Workshop
from daemon.listening import Address, is_loopback, open_socket, parse_listen, url_of
from daemon.log import WEB_FAILED, WEB_STARTED

if TYPE_CHECKING:
    from daemon.config import WebSection
    from daemon.web_http import PageServer

_NOTE: Final = "page"
_STOP_CHECK_S: Final = 0.5

_log = structlog.get_logger()


class Web:
    """Serves the page while the settings name an address. That it cannot is noted and stops nothing else."""

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._server: PageServer | None = None
        self._served: WebSection | None = None
        self.url: str | None = None
        """Where the page is; None while there is none."""

    def apply(self, web: WebSection) -> None:
        """Starts, moves or ends the server, where the settings changed or it could not be started."""
        if web == self._served and self._server is not None:
            return
        self.stop()
        address = parse_listen(web.listen)
        self._shop.note(_NOTE, "")
        if address is None:
            return
        try:
            self._start(address, web)
        except OSError as err:
            hint = "; under the systemd unit listen = 'systemd' and alignd.socket" if err.errno == EAFNOSUPPORT else ""
            self._fail(f"no page at {web.listen}: {err.strerror or err}{hint}")
        else:
            self._served = web

    def stop(self) -> None:
        """Ends the server; answers on their way are cut off."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server, self.url = None, None

    def _start(self, address: Address, web: WebSection) -> None:
        # a service without a page loads none of this
        from daemon.config import SERVICE_FILE
        from daemon.web_actions import PageContext
        from daemon.web_guard import Guard, TokenFileError
        from daemon.web_http import PageServer
        from daemon.web_site import Site

        home = self._shop.home
        guard = Guard(home, web.hosts)
        try:
            guard.make_token()
        except TokenFileError as err:
            self._fail(str(err))
            return
        opened = open_socket(address, os.environ)
        is_private = web.token_for == "everything" or not is_loopback(opened)
        site = Site(PageContext(home / SERVICE_FILE), guard, is_private=is_private, wake=self._shop.wake)
        self._server = PageServer(opened, site.answer)
        self.url = url_of(opened)
        run = threading.Thread(target=self._server.serve_forever, args=(_STOP_CHECK_S,), name="page", daemon=True)
        run.start()
        _log.info(WEB_STARTED, url=self.url, is_private=is_private)

    def _fail(self, reason: str) -> None:
        self._shop.note(_NOTE, reason)
        _log.error(WEB_FAILED, reason=reason)
