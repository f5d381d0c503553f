"""A stranger's words where they may be seen: in messages, log lines and reports."""

MAX_SHOWN_CHARS = 2000


def printable(text: str) -> str:
    """The text, such as a file's name, with everything escaped that would break a terminal, a log line or UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def shown(message: str) -> str:
    """A message that may quote a file: printable, and without its end where it is long."""
    cut = message if len(message) <= MAX_SHOWN_CHARS else message[:MAX_SHOWN_CHARS] + "…"
    return printable(cut)
