"""Cuts texts to what a gRPC client takes as the status of a call.

A status comes in trailers, which are metadata. Beyond 8 KiB of metadata, a client with gRPC's
defaults may see RESOURCE_EXHAUSTED in place of the status.
"""

from typing import Final

#: Bytes that a status may take, its text and its details together. The rest of the 8 KiB is for
#: names of trailers, and for what a server adds.
ROOM: Final = 7 * 1024

#: Bytes of metadata that the parts of a fleet take from each other and from Tritons. The text of a
#: model's error comes as metadata, and may be long.
WITHIN_A_FLEET: Final = 64 * 1024 * 1024

#: Bytes that a character may take: four bytes of UTF-8, each in three.
MOST_ENCODED: Final = 12

_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}


def encoded_size(text: str) -> int:
    """Return the bytes of a text in a trailer. All but printable ASCII takes three for each."""
    return sum(1 if byte in _PLAIN else 3 for byte in text.encode(errors="replace"))


def cut(text: str, room: int) -> str:
    """Return the text if it takes at most `room` bytes in a trailer, else its beginning, and that
    it was cut."""
    if MOST_ENCODED * len(text) <= room or encoded_size(text) <= room:
        return text
    note = f" ... (cut here, of {len(text)} characters)"
    left = room - len(note)
    kept = 0
    for character in text:
        left -= encoded_size(character)
        if left < 0:
            break
        kept += 1
    return text[:kept] + note
