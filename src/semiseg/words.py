"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 scan`, `2 scans`; plural: where an s at the end does not make it."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def in_minutes(number: float) -> str:
    """`1 minute`, `2.5 minutes`."""
    return f"{number:g} minute" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """The text with what is no character to print (escape sequences of a terminal, half of a surrogate pair) as
    backslashes and digits; lines stay lines."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def as_text_cell(text: str) -> str:
    """The text for a cell of a CSV file: with an apostrophe in front of what spreadsheets would take for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def from_text_cell(cell: str) -> str:
    """The text of such a cell."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


_FORMULA = ("=", "+", "-", "@", "'", "\t")


def shortened(names: list[str], shown: int = 5) -> str:
    """Names after commas: at most `shown`, and then how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
