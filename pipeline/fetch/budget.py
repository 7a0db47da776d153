"""How much an archive, with all archives in it, may become: bytes, files and levels, counted together."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import files
from pipeline.errors import UserError

MAX_UNPACKED_BYTES = 500 * 10**9
MAX_MEMBERS = 5_000_000
MAX_RATIO = 100  # unpacked bytes for each byte of the archive, beyond the first SMALL_BYTES; photos are at 1, CSV at 10
SMALL_BYTES = 64 * 10**6
BYTES_A_MEMBER = 16  # packed bytes that a member takes at least, beyond the first SMALL_MEMBERS; a header in a tar.gz takes about 30
SMALL_MEMBERS = 10_000
MAX_DEPTH = 8  # archives in archives; real ones have two or three levels


class TooMuch(UserError):
    """An archive and those in it would become more than they may: all of it is refused, not one of them left packed."""


def allowed_bytes(packed_bytes: int) -> int:
    """Bytes that an archive of `packed_bytes` may unpack to."""
    return min(MAX_UNPACKED_BYTES, max(SMALL_BYTES, MAX_RATIO * packed_bytes))


@dataclass
class Budget:
    """What is left for one outermost archive, called `name`: bytes to write and members to make, all levels together."""

    name: str
    packed_bytes: int
    used_bytes: int = 0
    used_members: int = 0

    @property
    def bytes_left(self) -> int:
        """Bytes that may still be written."""
        return allowed_bytes(self.packed_bytes) - self.used_bytes

    @property
    def members_left(self) -> int:
        """Members that may still be made."""
        return min(MAX_MEMBERS, max(SMALL_MEMBERS, self.packed_bytes // BYTES_A_MEMBER)) - self.used_members

    def spend(self, num_bytes: int, num_members: int) -> None:
        """Count what one archive becomes, before it is written.

        Raises:
            TooMuch: it is more than is left.
        """
        if num_bytes > self.bytes_left or num_members > self.members_left:
            size = files.human_size(self.packed_bytes)
            raise TooMuch(
                f"{self.name} was not unpacked: with the archives in it it becomes more than "
                f"{files.human_size(allowed_bytes(self.packed_bytes))} or {self.members_left + self.used_members:,} files, "
                f"which no archive of {size} of images does; it is not what it seems to be (a decompression bomb). "
                "If you trust it, unpack it yourself and give the folder"
            )
        self.used_bytes += num_bytes
        self.used_members += num_members

    def descend(self, depth: int) -> None:
        """Pass while archives lie at most MAX_DEPTH levels deep.

        Raises:
            TooMuch: they lie deeper.
        """
        if depth > MAX_DEPTH:
            raise TooMuch(f"{self.name} was not unpacked: it holds archives in archives, more than {MAX_DEPTH} levels deep")
