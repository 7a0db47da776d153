"""Limit what an archive may unpack to, with all archives in it: bytes, files and levels, counted together."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import files
from pipeline.errors import UserError

MAX_UNPACKED_BYTES = 500 * 10**9
MAX_MEMBERS = 5_000_000
MAX_RATIO = 100  # unpacked bytes per byte of the archive, above SMALL_BYTES; photos have 1, CSV has 10
SMALL_BYTES = 64 * 10**6
# minimum of packed bytes per member, above SMALL_MEMBERS; a header in a tar.gz takes about 30
BYTES_A_MEMBER = 16
SMALL_MEMBERS = 10_000
MAX_DEPTH = 8  # levels of archives in archives; real ones have two or three


class TooMuch(UserError):
    """The limits for an archive and those inside it are exceeded.

    The whole archive is refused, not only an inner one.
    """


def allowed_bytes(packed_bytes: int) -> int:
    """Return how many bytes an archive of `packed_bytes` may unpack to."""
    return min(MAX_UNPACKED_BYTES, max(SMALL_BYTES, MAX_RATIO * packed_bytes))


@dataclass
class Budget:
    """The remaining bytes and members of one outermost archive `name`, for all levels together."""

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
        """Number of members that may still be written."""
        return min(MAX_MEMBERS, max(SMALL_MEMBERS, self.packed_bytes // BYTES_A_MEMBER)) - self.used_members

    def spend(self, num_bytes: int, num_members: int) -> None:
        """Count the content of one archive before it is written.

        Raises:
            TooMuch: it exceeds the remaining budget.
        """
        if num_bytes > self.bytes_left or num_members > self.members_left:
            size = files.human_size(self.packed_bytes)
            raise TooMuch(
                f"{self.name} was not unpacked: with the archives in it, it would become more than "
                f"{files.human_size(allowed_bytes(self.packed_bytes))} or "
                f"{self.members_left + self.used_members:,} files, more than an archive of {size} with "
                "images can hold; it may be a decompression bomb. If you trust it, unpack it yourself and "
                "give the folder"
            )
        self.used_bytes += num_bytes
        self.used_members += num_members

    def descend(self, depth: int) -> None:
        """Check that archives are nested at most MAX_DEPTH levels deep.

        Raises:
            TooMuch: they are nested deeper.
        """
        if depth > MAX_DEPTH:
            raise TooMuch(
                f"{self.name} was not unpacked: archives in it are nested more than {MAX_DEPTH} levels deep"
            )
