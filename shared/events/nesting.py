"""How deep a JSON text nests, found without recursion, so that it can be bounded before anything recursive runs."""

import re

_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_AS_BRACES = bytes.maketrans(b"[]", b"{}")
_BUT_BRACES = bytes(byte for byte in range(256) if byte not in b"{}[]")


def deeper_than(raw: bytes, depth_max: int) -> bool:
    """True if brackets nest more than ``depth_max`` levels. Strings do not count. Never raises, whatever the bytes.

    Text whose brackets do not balance may be called deep: it is no JSON in any case.
    """
    if raw.count(b"{") + raw.count(b"[") <= depth_max:
        return False
    brackets = _STRINGS.sub(b"", raw).translate(_AS_BRACES, _BUT_BRACES)
    if b"{" * (depth_max + 1) in brackets:  # the usual bomb, found at its first bytes
        return True
    for _ in range(depth_max):  # each round takes off at least the innermost level
        if not brackets:
            return False
        brackets = brackets.replace(b"{}", b"")
    return bool(brackets)
