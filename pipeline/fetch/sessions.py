"""A session of requests for servers that may misbehave before the body of an answer begins."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

HEAD_S = 60.0  # until the head of an answer is there, however many bytes of it come meanwhile


def new_session() -> Any:
    """A session of requests that leaves the bodies of redirects unread, which may have no end, and waits for the head of an answer so long."""
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    class Session(requests.Session):
        def get_redirect_target(self, _response: Any) -> None:
            return None

    def hurried(pool: type) -> type:
        class Connection(pool.ConnectionCls):  # type: ignore[name-defined]
            def getresponse(self) -> Any:
                with _ended_after(HEAD_S, self.sock):
                    return super().getresponse()

        return type(pool.__name__, (pool,), {"ConnectionCls": Connection})

    pools = {"http": hurried(HTTPConnectionPool), "https": hurried(HTTPSConnectionPool)}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **options: Any) -> None:
            super().init_poolmanager(*args, **options)
            self.poolmanager.pool_classes_by_scheme = pools

        def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
            manager = super().proxy_manager_for(*args, **options)
            manager.pool_classes_by_scheme = pools
            return manager

    session = Session()
    session.mount("http://", Adapter())
    session.mount("https://", Adapter())
    return session


@contextmanager
def _ended_after(seconds: float, connection: socket.socket) -> Iterator[None]:
    """Close `connection` where the block takes longer: its own timeout begins anew with each byte that comes.

    Raises:
        TimeoutError: it took longer; what was read may look whole.
    """
    ended = threading.Event()

    def end() -> None:
        ended.set()
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if ended.is_set():
        raise TimeoutError(f"no whole answer within {seconds:g} s")
