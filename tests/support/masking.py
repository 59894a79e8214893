"""The slow, obvious way to mask, and the ways to cut a stream."""

from collections.abc import Iterable

from launcher.output.mask import MASK


def reference(
    text: bytes, secrets: list[bytes], others: Iterable[tuple[int, int]] = ()
) -> bytes:
    """The slow, obvious way: what overlaps becomes one mask; *others* are as given."""
    spans = sorted(
        (
            *others,
            *(
                (start, start + len(secret))
                for secret in set(secrets) - {b""}
                for start in range(len(text))
                if text.startswith(secret, start)
            ),
        )
    )
    clean, position, end = bytearray(), 0, 0
    for start, stop in spans:
        if start >= end:
            clean += text[position:start] + MASK
        end = position = max(end, stop)
    return bytes(clean + text[position:])


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]
