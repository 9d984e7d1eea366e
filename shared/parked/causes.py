"""What two refusals have in common. Pure."""


def cause_path(path: str) -> str:
    """A JSON pointer with ``*`` for the place in an array: every line of an order fails for one cause."""
    return "/".join("*" if step.isdecimal() and step.isascii() else step for step in path.split("/"))
