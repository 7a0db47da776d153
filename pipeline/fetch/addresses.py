"""Parse the source of a file (path, Google Drive id or link, https address), and show it without secrets."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from pipeline.errors import UserError

DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")


@dataclass(frozen=True)
class Source:
    """The source of a file. `kind`: "drive" (text: the file's id), "url", or "file" (text: the path)."""

    kind: str
    text: str

    @property
    def shown(self) -> str:
        """The source for messages, without user name, password or signed query."""
        if self.kind == "drive":
            return f"Google Drive file {self.text}"
        return without_secrets(self.text) if self.kind == "url" else self.text

    @property
    def key(self) -> str:
        """A digest that identifies the source. The address itself is not stored: it may hold a signature."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def parse_source(text: str, folder: Path = Path()) -> Source:
    """Parse `text`: a file (relative to `folder`), a Google Drive id or link, or an http(s) address.

    Raises:
        UserError: it is none of these, a Drive folder, or a file that does not exist.
    """
    text = text.strip()
    path = Path(folder) / os.path.expanduser(text)  # unlike Path's own, it keeps ~unknown as it is
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
    raise UserError(
        f"{text!r} is not a file{hint}; give a path, a Google Drive id or link, or an https address"
    )


def _parse_url(url: str) -> Source:
    shown = without_secrets(url)
    try:
        parts = urlsplit(url)
    except ValueError:  # its message may hold the password
        raise UserError(
            f"{shown} is not a valid address; give a full one such as https://host/file.zip"
        ) from None
    if parts.scheme not in ("http", "https"):
        raise UserError(
            f"{shown}: {parts.scheme}:// is not supported; give an https address, a Google Drive id or a path"
        )
    if not parts.hostname:
        raise UserError(f"{shown} has no host; give a full address such as https://host/file.zip")
    if parts.hostname not in DRIVE_HOSTS:
        return Source("url", url)
    if "/folders/" in parts.path:
        raise UserError(
            f"{shown} is a Google Drive folder; give the link of one file (Share > Copy link on the file "
            "itself)"
        )
    in_path = re.search(r"/d/([-\w]+)", parts.path)
    file_id = in_path[1] if in_path else parse_qs(parts.query).get("id", [""])[0]
    if not re.fullmatch(r"[-\w]+", file_id):
        raise UserError(
            f"{shown} has no Google Drive file id; expected https://drive.google.com/file/d/FILE_ID/view"
        )
    return Source("drive", file_id)


def without_secrets(text: str) -> str:
    """Remove user names and queries from the addresses in `text`; both may be credentials."""
    text = re.sub(r"(://)[^/\s@]+@", r"\1", text)
    return re.sub(r"\?[^\s'\")]+", "?...", text)
