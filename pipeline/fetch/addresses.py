"""Where a file comes from: a path, a Google Drive id or link, an https address; shown without what may be secret."""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pipeline.errors import UserError

DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")


@dataclass(frozen=True)
class Source:
    """Where a file comes from: kind "drive" (text: the file's id), "url" or "file" (text: the path)."""

    kind: str
    text: str

    @property
    def shown(self) -> str:
        """The source for a message, without a user name, password or signed query."""
        if self.kind == "drive":
            return f"Google Drive file {self.text}"
        return without_secrets(self.text) if self.kind == "url" else self.text

    @property
    def key(self) -> str:
        """A digest of the source: an address may hold a signature, which is kept nowhere."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def parse_source(text: str, folder: Path = Path()) -> Source:
    """What `text` names: a file (relative to `folder`), a Google Drive id or link, or an http(s) address.

    Raises:
        UserError: it is none of these, a Drive folder, or a file that does not exist.
    """
    text = text.strip()
    path = Path(folder) / Path(text).expanduser()
    if text and path.is_file():
        return Source("file", str(path))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        return _parse_url(text)
    if re.fullmatch(r"[-\w]{25,}", text):
        return Source("drive", text)
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the archive file itself")
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f" (is it {path.parent / near[0]}?)" if near else ""
    raise UserError(f"{text!r} is no file{hint}; give a path, a Google Drive id or link, or an https address")


def _parse_url(url: str) -> Source:
    shown = without_secrets(url)
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may hold the password
        raise UserError(f"{shown} is no address; give a full one such as https://host/file.zip") from None
    if parts.scheme not in ("http", "https"):
        raise UserError(f"{shown}: {parts.scheme}:// is not supported; give an https address, a Google Drive id or a path")
    if not parts.hostname:
        raise UserError(f"{shown} names no host; give a full address such as https://host/file.zip")
    if parts.hostname not in DRIVE_HOSTS:
        return Source("url", url)
    if "/folders/" in parts.path:
        raise UserError(f"{shown} is a Google Drive folder; give the link of one file (Share > Copy link on the file itself)")
    in_path = re.search(r"/d/([-\w]+)", parts.path)
    file_id = in_path[1] if in_path else parse_qs(parts.query).get("id", [""])[0]
    if not re.fullmatch(r"[-\w]+", file_id):
        raise UserError(f"{shown} holds no Google Drive file id; it should look like https://drive.google.com/file/d/FILE_ID/view")
    return Source("drive", file_id)


def without_secrets(text: str) -> str:
    """`text` with the user names and queries of its addresses left out; both may be credentials."""
    text = re.sub(r"(://)[^/\s@]+@", r"\1", text)
    return re.sub(r"\?[^\s'\")]+", "?...", text)
