"""Make a requests session for servers that may misbehave before the body of an answer begins."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

HEAD_S = 60.0  # time limit for the head of an answer, even if its bytes keep coming


def new_session() -> Any:
    """Return a requests session that ignores the bodies of redirects (they may be endless) and limits the
    head to HEAD_S.
    """
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
    """Close `connection` if the block takes longer than `seconds`: a socket's own timeout restarts with every
    byte.

    Raises:
        TimeoutError: it took longer; the data read may look complete.
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
        raise TimeoutError(f"no complete answer within {seconds:g} s")
