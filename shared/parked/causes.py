"""What two refusals have in common. Pure."""

ANY = "*"


def cause_path(path: str) -> str:
    """A JSON pointer with ``*`` for the place in an array: every line of an order fails for one cause.

    The keys of maps are ``*`` already: whoever refused the event knew which node is a map, here nobody does. What was
    parked before that was so has its keys, and with them a group of its own, until it is tried next.
    """
    return "/".join(ANY if step.isdecimal() and step.isascii() else step for step in path.split("/"))


def fits(wanted: str, path: str) -> bool:
    """Whether ``path`` is what an operator asks for: ``*`` stands for any one step."""
    if wanted == path:
        return True
    asked, found = wanted.split("/"), path.split("/")
    return len(asked) == len(found) and all(ask in (ANY, step) for ask, step in zip(asked, found, strict=True))
