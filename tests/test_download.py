import gzip
import hashlib
import inspect
import io
import random
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from servers import Reply, play_drive, serving

from pipeline.errors import UserError
from pipeline.fetch import download
from pipeline.fetch.addresses import Source
from pipeline.fetch.download import fetch
from pipeline.fetch.transfer import Download

DRIVE_ID = "1AbCdEfGhIjKlMnOpQrStUvWxYz012345"
SAVED = {
    "Content-Disposition": 'attachment; filename="weights.zip"',
    "Content-Type": "application/octet-stream",
}
PAGE = {"Content-Type": "text/html; charset=utf-8"}
QUOTA_PAGE = (
    b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>\n"
    b'<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>\n'
    b'<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. '
    b"Please try later.</p>\n</body></html>"
)
SCAN_PAGE = (
    "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>\n"
    '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    f'<input type="hidden" name="id" value="{DRIVE_ID}"><input type="hidden" name="confirm" value="t">'
    "</form>\n</body></html>"
).encode()


def zip_bytes(**members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in (members or {"weights": random.Random(0).randbytes(300_000)}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


BODY = zip_bytes()
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        yield server


@pytest.fixture
def drive(server, monkeypatch, tmp_path):
    import gdown  # noqa: F401

    module = sys.modules["gdown.download"]  # `gdown.download` is the function of that name
    monkeypatch.setattr(module, "home", str(tmp_path / "home"))
    monkeypatch.setattr(
        module, "DEFAULT_COOKIES_FILE", str(tmp_path / "home/.cache/gdown/cookies.txt"), raising=False
    )
    (tmp_path / "home/.cache/gdown").mkdir(parents=True)
    # Less than the file, so that a part of it can arrive
    monkeypatch.setattr(module, "CHUNK_SIZE", 64 * 1024)
    play_drive(server, monkeypatch)
    return server


@pytest.fixture
def naps():
    return []


def parts_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


# https


def test_a_file_arrives_whole_and_nothing_else_stays(server, tmp_path, naps):
    server.replies["/w.zip"] = [Reply(BODY)]
    target = tmp_path / "new" / "w.zip"
    assert (
        fetch(f"{server.url}/w.zip", target, sha256=DIGEST.upper(), size=len(BODY), sleep=naps.append)
        == target
    )
    assert target.read_bytes() == BODY
    assert parts_in(target.parent) == ["w.zip"]
    assert naps == []


def test_a_file_that_is_there_and_right_is_not_fetched_again(server, tmp_path):
    (tmp_path / "w.zip").write_bytes(BODY)
    fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sha256=DIGEST)
    assert server.seen == []


def test_a_file_that_is_there_and_wrong_is_left_alone(server, tmp_path):
    (tmp_path / "w.zip").write_bytes(zip_bytes(other="mine"))
    with pytest.raises(UserError, match=r"move it away"):
        fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sha256=DIGEST)
    assert (tmp_path / "w.zip").read_bytes() == zip_bytes(other="mine")


def test_a_local_file_is_checked_and_used_where_it_is(tmp_path):
    local = tmp_path / "mine.zip"
    local.write_bytes(BODY)
    assert fetch(str(local), tmp_path / "w.zip", sha256=DIGEST) == local
    with pytest.raises(
        UserError, match=f"mine.zip is not the expected file.*\n.*sha256 is {DIGEST}, expected {'0' * 64}"
    ):
        fetch(str(local), tmp_path / "w.zip", sha256="0" * 64)
    assert local.read_bytes() == BODY


def test_a_cut_connection_is_continued_from_where_it_stopped(server, tmp_path, naps, capsys):
    server.replies["/w.zip"] = [
        Reply(BODY, headers={"ETag": '"1"'}, cut_at=200_000),
        Reply(BODY, headers={"ETag": '"1"'}),
    ]
    fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append)
    assert (tmp_path / "w.zip").read_bytes() == BODY
    asked = server.seen[1][1]
    assert 0 < int(asked["range"].removeprefix("bytes=").removesuffix("-")) <= 200_000
    assert asked["if-range"] == '"1"'
    assert naps == [1.0]
    assert "trying again in 1 s" in capsys.readouterr().err


@pytest.mark.parametrize(("step", "requests"), [(1, 5), (50_000, 7)])
def test_a_server_that_cuts_after_every_byte_is_not_asked_for_ever(server, tmp_path, naps, step, requests):
    replies = [Reply(BODY, headers={"ETag": '"1"'}, cut_at=step * number) for number in range(1, 300)]
    server.replies["/w.zip"] = replies if step == 1 else [*replies[:6], Reply(BODY, headers={"ETag": '"1"'})]
    if step == 1:
        with pytest.raises(UserError, match="after 4 retries"):
            fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append)
    else:
        fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append)
    assert len(server.seen) == requests


def test_a_later_call_continues_what_an_earlier_one_left(server, tmp_path, naps):
    server.replies["/w.zip"] = [Reply(BODY, cut_at=200_000), Reply(b"", 503)]
    with pytest.raises(UserError, match=r"503.* after 4 .*are kept: the same command continues"):
        fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sha256=DIGEST, sleep=naps.append)
    server.replies["/w.zip"] = [Reply(BODY)]
    fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sha256=DIGEST, sleep=naps.append)
    assert "range" in server.seen[-1][1]
    assert (tmp_path / "w.zip").read_bytes() == BODY
    assert parts_in(tmp_path) == ["w.zip"]


def test_another_version_of_the_file_is_fetched_from_the_start(server, tmp_path, naps):
    newer = zip_bytes(weights=random.Random(1).randbytes(300_000))
    server.replies["/w.zip"] = [
        Reply(BODY, headers={"ETag": '"1"'}, cut_at=200_000),
        Reply(newer, headers={"ETag": '"2"'}),
    ]
    fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append)
    assert (tmp_path / "w.zip").read_bytes() == newer


def test_without_version_or_digest_nothing_is_spliced(server, tmp_path, naps):
    server.replies["/w.zip"] = [Reply(BODY, cut_at=200_000), Reply(BODY)]
    fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append)
    assert "range" not in server.seen[1][1]
    assert (tmp_path / "w.zip").read_bytes() == BODY


def test_a_continued_file_with_the_wrong_digest_is_fetched_once_more(server, tmp_path, naps, capsys):
    other = zip_bytes(weights=random.Random(1).randbytes(300_000))
    server.replies["/w.zip"] = [Reply(other, cut_at=200_000), Reply(BODY)]
    fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sha256=DIGEST, sleep=naps.append)
    assert (tmp_path / "w.zip").read_bytes() == BODY
    assert f"expected {DIGEST}); starting again" in capsys.readouterr().err


def test_a_part_that_is_whole_already_is_used(server, tmp_path, naps):
    server.replies["/w.zip"] = [
        Reply(BODY, headers={"ETag": '"1"'}, cut_at=200_000),
        Reply(BODY, headers={"ETag": '"1"'}),
    ]
    source = Source("url", f"{server.url}/w.zip")
    job = Download(source, tmp_path / "w.zip", DIGEST, None, None)
    job.part.write_bytes(BODY)
    fetch(source, tmp_path / "w.zip", sha256=DIGEST, sleep=naps.append)
    assert [asked.get("range") for _, asked in server.seen] == [f"bytes={len(BODY)}-"]
    assert (tmp_path / "w.zip").read_bytes() == BODY


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_given_the_time_it_asks_for(status, server, tmp_path, naps):
    server.replies["/w.zip"] = [Reply(b"", status, {"Retry-After": "7"}), Reply(BODY)]
    fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append)
    assert naps == [7.0]


def test_retry_after_may_be_a_date(server, tmp_path, naps):
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    server.replies["/w.zip"] = [Reply(b"", 429, {"Retry-After": when}), Reply(BODY)]
    fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append)
    assert 25 < naps[0] <= 30


def test_a_server_that_asks_for_an_hour_ends_it(server, tmp_path, naps):
    server.replies["/w.zip"] = [Reply(b"", 429, {"Retry-After": "3600"})]
    with pytest.raises(UserError, match=r"429.*asks to wait 1h00m"):
        fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append)
    assert naps == []


def test_tries_are_bounded(server, tmp_path, naps):
    server.replies["/w.zip"] = [Reply(b"", 503)]
    with pytest.raises(UserError, match=r"503 Service Unavailable; .* after 4 "):
        fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append)
    assert naps == [1.0, 2.0, 4.0, 8.0]


def test_a_missing_file_is_not_tried_again_and_the_ways_out_are_named(server, tmp_path, naps):
    with pytest.raises(
        UserError, match=r"answers 404: .*\nWhat helps:\n.*in a browser.*\n  - make weights WEIGHTS=x"
    ):
        fetch(
            f"{server.url}/none.zip",
            tmp_path / "w.zip",
            otherwise=["make weights WEIGHTS=x"],
            sleep=naps.append,
        )
    assert naps == [] and parts_in(tmp_path) == []


@pytest.mark.parametrize("headers", [PAGE, {"Content-Type": "application/zip"}])
def test_a_web_page_is_recognised_whatever_it_calls_itself(headers, server, tmp_path):
    page = b"\n<!DOCTYPE html><html><head><title>Sign in - Files</title></head></html>"
    server.replies["/w.zip"] = [Reply(page, headers=headers)]
    with pytest.raises(UserError, match=r"a web page \('Sign in - Files'\), perhaps one to sign in"):
        fetch(f"{server.url}/w.zip", tmp_path / "w.zip")
    assert parts_in(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        (BODY, {"sha256": "0" * 64}, f"its sha256 is {DIGEST}, expected {'0' * 64}"),
        (BODY, {"size": len(BODY) + 1}, f"has {len(BODY)} bytes, expected {len(BODY) + 1}"),
        (BODY[:-100], {}, "a zip file without its end"),
        (b"Rar!" + BODY, {}, r"not a .zip file: it starts with b'Rar!"),
    ],
)
def test_a_wrong_file_is_discarded_and_told_apart(body, options, message, server, tmp_path, naps):
    server.replies["/w.zip"] = [Reply(body)]
    with pytest.raises(UserError, match=message):
        fetch(f"{server.url}/w.zip", tmp_path / "w.zip", sleep=naps.append, **options)
    assert parts_in(tmp_path) == []
    assert naps == []


def test_more_bytes_than_announced_are_not_taken(server, tmp_path):
    server.replies["/w.zip"] = [Reply(BODY, headers={"Transfer-Encoding": "identity", "Content-Length": ""})]
    with pytest.raises(UserError, match=r"sends more than the 1000 bytes"):
        fetch(f"{server.url}/w.zip", tmp_path / "w.zip", size=1000)


def test_plain_http_needs_a_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "requests.Session.get", lambda *args, **options: pytest.fail("nothing may be asked for")
    )
    with pytest.raises(UserError, match=r"plain http.*https.*sha256"):
        fetch("http://host.invalid/w.zip", tmp_path / "w.zip")


def test_a_connection_that_cannot_be_made_is_an_error_without_credentials(server, tmp_path, naps):
    with serving() as gone:
        url = gone.url
    with pytest.raises(UserError, match=r"the connection failed: Connection refused; .* after 4 ") as caught:
        fetch(f"{url}/w.zip?token=secret", tmp_path / "w.zip", sleep=naps.append)
    assert "secret" not in str(caught.value)
    assert len(naps) == download.MAX_RETRIES


# Google Drive, through the real gdown


def test_drive_gives_the_file(drive, tmp_path, naps):
    drive.replies["/uc"] = [Reply(BODY, headers=SAVED)]
    fetch(DRIVE_ID, tmp_path / "w.zip", sha256=DIGEST, size=len(BODY), sleep=naps.append)
    assert (tmp_path / "w.zip").read_bytes() == BODY
    assert drive.seen[0][0] == f"/uc?id={DRIVE_ID}"
    assert parts_in(tmp_path) == ["w.zip"]


def test_drive_is_told_that_no_virus_scan_is_needed(drive, tmp_path, naps):
    drive.replies["/uc"] = [Reply(SCAN_PAGE, headers=PAGE)]
    drive.replies["/download"] = [Reply(BODY, headers=SAVED)]
    fetch(
        f"https://drive.google.com/file/d/{DRIVE_ID}/view",
        tmp_path / "w.zip",
        sha256=DIGEST,
        sleep=naps.append,
    )
    assert (tmp_path / "w.zip").read_bytes() == BODY
    assert "confirm=t" in drive.seen[-1][0]


def test_drive_over_its_quota_says_what_helps(drive, tmp_path, naps):
    drive.replies["/uc"] = [Reply(QUOTA_PAGE, headers=PAGE)]
    with pytest.raises(UserError) as caught:
        fetch(
            DRIVE_ID,
            tmp_path / "w.zip",
            otherwise=["make weights WEIGHTS=/path/to/file.zip"],
            sleep=naps.append,
        )
    text = str(caught.value)
    assert "Too many users have viewed or downloaded this file recently" in text
    assert f"open https://drive.google.com/file/d/{DRIVE_ID}/view in a browser" in text
    assert "make weights WEIGHTS=/path/to/file.zip" in text
    assert "cookies.txt" in text
    assert parts_in(tmp_path) == [] and naps == []


def test_drive_cut_in_the_middle_is_continued(drive, tmp_path, naps):
    drive.replies["/uc"] = [Reply(BODY, headers=SAVED, cut_at=200_000), Reply(BODY, headers=SAVED)]
    fetch(DRIVE_ID, tmp_path / "w.zip", sha256=DIGEST, sleep=naps.append)
    assert (tmp_path / "w.zip").read_bytes() == BODY
    assert naps == [1.0]
    assert [asked["range"] for _, asked in drive.seen if "range" in asked] != []
    assert parts_in(tmp_path) == ["w.zip"]


def test_drive_cut_again_and_again_is_continued_by_the_next_call(drive, tmp_path, naps):
    drive.replies["/uc"] = [Reply(BODY, headers=SAVED, cut_at=200_000)]
    with pytest.raises(UserError, match=r"are kept"):
        fetch(DRIVE_ID, tmp_path / "w.zip", sha256=DIGEST, sleep=naps.append)
    drive.replies["/uc"] = [Reply(BODY, headers=SAVED)]
    drive.seen.clear()
    fetch(DRIVE_ID, tmp_path / "w.zip", sha256=DIGEST, sleep=naps.append)
    assert "range" in drive.seen[-1][1]
    assert (tmp_path / "w.zip").read_bytes() == BODY


def test_drive_that_ignores_the_range_starts_over(drive, tmp_path, naps):
    drive.replies["/uc"] = [
        Reply(BODY, headers=SAVED, cut_at=200_000),
        Reply(BODY, headers=SAVED, ranges=False),
    ]
    fetch(DRIVE_ID, tmp_path / "w.zip", sha256=DIGEST, sleep=naps.append)
    assert (tmp_path / "w.zip").read_bytes() == BODY


def test_drive_with_the_wrong_file_is_told(drive, tmp_path, naps):
    drive.replies["/uc"] = [Reply(zip_bytes(other="1"), headers=SAVED)]
    with pytest.raises(UserError, match=f"Google Drive file {DRIVE_ID} .*\n.*its sha256 is"):
        fetch(DRIVE_ID, tmp_path / "w.zip", sha256=DIGEST, sleep=naps.append)
    assert parts_in(tmp_path) == []


def test_the_users_cookies_are_sent_and_not_rewritten(drive, tmp_path, naps):
    import gdown

    if "cookies_file" not in inspect.signature(gdown.download).parameters:
        pytest.skip("gdown 5 takes no cookies file")
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n.google.com\tTRUE\t/\tFALSE\t4102444800\tSID\tabc\n")
    before = cookies.read_bytes()
    drive.replies["/uc"] = [Reply(BODY, headers=SAVED | {"Set-Cookie": "NID=fresh"})]
    fetch(DRIVE_ID, tmp_path / "w.zip", cookies=cookies, sleep=naps.append)
    assert "SID=abc" in drive.seen[0][1]["cookie"]
    assert cookies.read_bytes() == before
    with pytest.raises(UserError, match=r"the cookies file .*none.txt does not exist"):
        fetch(DRIVE_ID, tmp_path / "v.zip", cookies=tmp_path / "none.txt", sleep=naps.append)


@pytest.mark.parametrize(
    "location", ["http://[::1", "\xff\xfe", "http://a\u2100b/".encode().decode("latin-1")]
)
def test_a_redirect_to_what_is_no_address_is_one_message(server, tmp_path, location):
    server.replies["/a.zip"] = [Reply(status=302, headers={"Location": location})]
    with pytest.raises(UserError):
        fetch(f"{server.url}/a.zip", tmp_path / "a.zip")


def test_the_body_of_a_redirect_is_not_read(server, tmp_path):
    bomb = gzip.compress(bytes(50_000_000), 9)
    server.replies["/a.zip"] = [
        Reply(
            bomb, 302, {"Location": f"{server.url}/b.zip", "Content-Encoding": "gzip"}, cut_at=len(bomb) - 9
        )
    ]
    server.replies["/b.zip"] = [Reply(BODY)]
    assert fetch(f"{server.url}/a.zip", tmp_path / "a.zip").read_bytes() == BODY


def test_a_server_that_says_the_part_of_nothing_is_whole(server, tmp_path):
    server.replies["/a.zip"] = [Reply(status=416, headers={"Content-Range": "bytes */0"}), Reply(BODY)]
    assert fetch(f"{server.url}/a.zip", tmp_path / "a.zip", sleep=lambda _: None).read_bytes() == BODY
