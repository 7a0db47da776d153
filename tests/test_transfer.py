"""A download from a server that means harm or is broken: bounded in bytes and time, and asked for nothing
inside this network.
"""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from servers import Reply, serving

from pipeline.errors import UserError
from pipeline.fetch import sessions, transfer
from pipeline.fetch.download import fetch
from pipeline.fetch.transfer import _is_inside, _retry_after

MEGABYTE = bytes(10**6)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@contextmanager
def raw(head: bytes, body: Callable[[], Iterator[bytes]] = lambda: iter(())) -> Iterator[str]:
    """The address of a server that answers every request with exactly these bytes, however long they go
    on.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(head)
            for piece in body():
                if over.is_set():
                    return
                connection.sendall(piece)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def endless(piece: bytes, pause: float = 0.0) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        while True:
            yield piece
            time.sleep(pause)

    return pieces


def parts(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".part"))


def get(url: str, folder: Path, **options: object) -> Path:
    return fetch(f"{url}/w.zip", folder / "w.zip", sleep=lambda seconds: None, **options)


def test_a_byte_at_a_time_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SLOW_WINDOW_S", 0.5)
    started = time.monotonic()
    with (
        raw(b"HTTP/1.1 200 OK\r\n\r\n", endless(b"P", 0.02)) as url,
        pytest.raises(UserError, match=r"too slow; .*is kept"),
    ):
        get(url, tmp_path)
    assert time.monotonic() - started < 10 and len(parts(tmp_path)) == 1


def test_a_body_without_end_is_cut_off_at_what_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "MAX_DOWNLOAD_BYTES", 5 * 10**6)
    with (
        raw(b"HTTP/1.1 200 OK\r\n\r\n", endless(MEGABYTE)) as url,
        pytest.raises(UserError, match="sends more than the 5000000 bytes"),
    ):
        get(url, tmp_path)


def test_a_compressed_body_that_becomes_a_thousand_times_larger_is_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "allowed_bytes", lambda received: max(10**6, 100 * received))
    bomb = gzip.compress(bytes(50 * 10**6))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    with raw(head, lambda: iter([bomb])) as url, pytest.raises(UserError, match="decompression bomb"):
        get(url, tmp_path)
    assert parts(tmp_path) == []


GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
# The head of a gzip file, then blocks of no bytes
NOTHING = gzip.compress(b"")[:10] + b"\x00\x00\x00\xff\xff" * 4000


def test_a_packed_body_that_becomes_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "SLOW_WINDOW_S", 0.3)
    with raw(GZIP + NOTHING, endless(NOTHING[10:])) as url, pytest.raises(UserError, match="too slow"):
        get(url, tmp_path)


def test_a_packed_body_is_unpacked_to_its_last_part(tmp_path: Path) -> None:
    empty_zip = b"PK\x05\x06" + bytes(18)
    body = gzip.compress(empty_zip[:9]) + gzip.compress(empty_zip[9:])
    with raw(GZIP, lambda: iter([body[:15], body[15:]])) as url:
        assert get(url, tmp_path).read_bytes() == empty_zip
    with (
        raw(GZIP, lambda: iter([body[:-12]])) as url,
        pytest.raises(UserError, match="the connection was cut"),
    ):
        get(url, tmp_path / "cut")
    with (
        raw(GZIP.replace(b"gzip", b"br"), lambda: iter([body])) as url,
        pytest.raises(UserError, match="'br'"),
    ):
        get(url, tmp_path / "other")


def test_the_head_of_an_answer_is_not_waited_for_byte_by_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "HEAD_S", 0.1)
    started = time.monotonic()
    with (
        raw(b"HTTP/1.1 200 OK\r\nX: ", endless(b"x", 0.02)) as url,
        pytest.raises(UserError, match="the connection failed"),
    ):
        get(url, tmp_path)
    assert time.monotonic() - started < 10


def test_a_disk_that_fills_up_gets_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    free = iter([10**12, 10**12])
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: usage(10**12, 0, next(free, 0)))
    monkeypatch.setattr(transfer, "CHECK_BYTES", 10**6)
    with (
        raw(b"HTTP/1.1 200 OK\r\n\r\n", endless(MEGABYTE)) as url,
        pytest.raises(UserError, match=r"the disk is full; .* was removed"),
    ):
        get(url, tmp_path)
    assert parts(tmp_path) == []


def test_a_redirect_into_this_machine_is_never_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here 127.0.0.1 plays a host on the internet, and localhost itself."""
    monkeypatch.setattr(transfer, "_is_inside", lambda url: "localhost" in url)
    with serving() as server:
        port = server.url.rpartition(":")[2]
        server.replies["/w.zip"] = [Reply(b"", 302, {"Location": f"http://localhost:{port}/secret"})]
        server.replies["/secret"] = [Reply(b"PK\x05\x06" + bytes(18))]
        with pytest.raises(UserError, match=r"localhost:\d+/secret, inside this machine"):
            get(server.url, tmp_path)
        assert [path for path, _ in server.seen] == ["/w.zip"]
        # Who names an address inside may be sent on inside
        monkeypatch.setattr(transfer, "_is_inside", lambda url: True)
        assert get(server.url, tmp_path).exists()


def test_a_redirect_to_plain_http_or_in_a_circle_is_refused(tmp_path: Path) -> None:
    with serving() as server:
        server.replies["/w.zip"] = [Reply(b"", 302, {"Location": "/w.zip"})]
        with pytest.raises(UserError, match="redirected more than 10 times"):
            get(server.url, tmp_path)
        server.replies["/w.zip"] = [Reply(b"", 302, {"Location": "http://host.invalid/x.zip"})]
        with pytest.raises(UserError, match=r"host\.invalid/x\.zip is plain http"):
            get(server.url, tmp_path)
        server.replies["/w.zip"] = [Reply(b"", 302, {"Location": "file:///etc/passwd"})]
        with pytest.raises(UserError):
            get(server.url, tmp_path)


@pytest.mark.parametrize(
    "host",
    (
        "127.0.0.1 localhost 10.1.2.3 192.168.0.9 169.254.169.254 0.0.0.0 [::1] [fd00::1] [::ffff:10.0.0.1]"
    ).split(),
)
def test_addresses_inside(host: str) -> None:
    assert _is_inside(f"https://name@{host}:8080/x")


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "name.invalid", ""])
def test_addresses_outside(host: str) -> None:
    assert not _is_inside(f"https://{host}/x")


@pytest.mark.parametrize("length", ["abc", "-5", "\u00b2", "1e3", "", "9" * 5000])
def test_a_content_length_that_is_no_number_is_no_traceback(tmp_path: Path, length: str) -> None:
    empty_zip = b"PK\x05\x06" + bytes(18)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode("latin-1") + empty_zip
    with raw(head) as url:
        try:
            assert get(url, tmp_path).read_bytes() == empty_zip
        except UserError as error:  # a number too large to be one
            assert (
                (length[:1] == "9" and "needed" in str(error))
                or "Length" in str(error)
                or "ended" in str(error)
            )


@pytest.mark.parametrize(
    "value", ["soon", "\u00b2", "nan", "-5", "1e999", "9" * 40, "", "Fri, 31 Dec 99999 23:59:59 GMT"]
)
def test_a_retry_after_that_is_no_number_says_nothing(value: str) -> None:
    assert _retry_after(value) is None


def test_a_reason_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for status in (418, 503):
        head = f"HTTP/1.1 {status} \x1b[2J\x1b]0;owned\x07busy\r\nContent-Length: 0\r\n\r\n".encode()
        with raw(head) as url, pytest.raises(UserError) as caught:
            get(url, tmp_path)
        assert "busy" in str(caught.value)
        assert set("\x1b\x07").isdisjoint(str(caught.value) + capsys.readouterr().err)
