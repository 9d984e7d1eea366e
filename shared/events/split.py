"""One answer of the source, split into the bytes of its elements, so that a bad event spoils only itself.

The fast path lets msgspec find the elements. Where the page is bad JSON (one element holds NaN, or ten thousand
brackets), a scanner that knows no more than strings and brackets splits it; what it can split is complete, and each
element is then judged by itself, at 25 µs an element: large pages belong into a thread. Anything else raises
``MalformedPage``: the page is asked for again, and nothing of it is parked.
"""

import re
from collections.abc import Iterator

import msgspec

_BOM = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{\]}:,"]', re.DOTALL)
_elements = msgspec.json.Decoder(list[msgspec.Raw])
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


ELEMENTS_MAX = 200_000


class MalformedPage(Exception):
    """The body is not a complete array of elements that can be split. Says what and where, never quotes the body."""


def split_page(body: bytes, pointer: str = "", *, elements_max: int = ELEMENTS_MAX) -> list[bytes]:
    """The raw bytes of each element of the array to which ``pointer`` (RFC 6901) leads, in order.

    The array's members need not be valid JSON; its brackets must balance and its strings must end. An empty element
    (``[1,,2]``) is malformed: there is no event that could be judged. So is a page in which the pointer's name stands
    twice: one of the two arrays would be lost. More than ``elements_max`` would cost a hundred times the body's memory.
    A UTF-8 byte order mark is skipped. Raises ``MalformedPage``.
    """
    steps = _steps(pointer)
    text = body[len(_BOM) :] if body.startswith(_BOM) else body
    try:
        elements = _elements.decode(_descend(text, steps))
        if len(elements) > elements_max:
            raise MalformedPage(f"{len(elements)} elements, more than {elements_max}: lower page_rows, or page at all")
        return [bytes(raw) for raw in elements]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError):
        return _scan_page(text, steps)


def _steps(pointer: str) -> list[str]:
    if not pointer:
        return []
    if not pointer.startswith("/"):
        raise ValueError(f"a JSON pointer is empty or starts with '/', not {pointer!r}")
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer[1:].split("/")]


def _descend(text: bytes, steps: list[str]) -> bytes:
    """Raises ``LookupError`` where the scanner must decide: the step is absent, or may stand there twice."""
    for step in steps:
        value = bytes(_members.decode(text)[step])
        around = text.replace(value, b"", 1)
        if around.count(msgspec.json.encode(step)) != 1:
            raise LookupError(step)
        text = value
    return text


def _scan_page(text: bytes, steps: list[str]) -> list[bytes]:
    start, end = _trim(text, 0, len(text))
    for step in steps:
        start, end = _find_member(text, start, end, step)
    if text[start : start + 1] != b"[":
        raise MalformedPage(f"expected an array at byte {start}" if start < end else "the body is empty")
    elements = [text[first:last] for first, last in _parts(text, start, end)]
    if elements == [b""]:
        return []
    if b"" in elements:
        raise MalformedPage(f"element {elements.index(b'')} of the array is empty")
    return elements


def _find_member(text: bytes, start: int, end: int, step: str) -> tuple[int, int]:
    """Where the value of ``step`` lies in the object or array that fills ``text[start:end]``."""
    parts = list(_parts(text, start, end))
    if text[start : start + 1] == b"[":
        if not step.isdecimal() or int(step) >= len(parts):
            raise MalformedPage(f"the body has no element {step!r}")
        return parts[int(step)]
    found = [_value(text, part) for part in parts if _name(text, part) == step]
    if len(found) != 1:
        raise MalformedPage(f"the body has {'no' if not found else 'more than one'} member {step!r}")
    return found[0]


def _name(text: bytes, part: tuple[int, int]) -> str | None:
    match = _TOKEN.match(text, part[0], part[1])
    try:
        return msgspec.json.decode(match[0], type=str) if match else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _value(text: bytes, part: tuple[int, int]) -> tuple[int, int]:
    match = _TOKEN.match(text, part[0], part[1])
    start = _trim(text, match.end() if match else part[0], part[1])[0]
    if text[start : start + 1] != b":":
        raise MalformedPage(f"expected ':' at byte {start}")
    return _trim(text, start + 1, part[1])


def _parts(text: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The spans between the commas of the object or array that fills ``text[start:end]``, trimmed.

    Depth is a count, not a stack, so any nesting is scanned in constant memory, and ``{"a":[1}}`` spoils one element
    only.
    """
    opener = text[start : start + 1]
    closer = {b"[": b"]", b"{": b"}"}.get(opener)
    if closer is None:
        raise MalformedPage(f"expected an array or object at byte {start}")
    depth, first = 0, start + 1
    for token in _TOKEN.finditer(text, start, end):
        kind = token[0]
        if kind in (b"[", b"{"):
            depth += 1
        elif kind in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                if kind != closer or token.end() != end:
                    raise MalformedPage(f"the array or object that starts at byte {start} ends at byte {token.start()}")
                yield _trim(text, first, token.start())
                return
        elif kind == b"," and depth == 1:
            yield _trim(text, first, token.start())
            first = token.end()
        elif kind == b'"':
            raise MalformedPage(f"the string that starts at byte {token.start()} does not end")
    raise MalformedPage(f"the array or object that starts at byte {start} does not end: the body is cut off")


def _trim(text: bytes, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start] in _SPACE:
        start += 1
    while end > start and text[end - 1] in _SPACE:
        end -= 1
    return start, end
