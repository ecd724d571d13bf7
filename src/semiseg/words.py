"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 scan`, `2 scans`; plural: where an s at the end does not make it."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def in_minutes(number: float) -> str:
    """`1 minute`, `2.5 minutes`."""
    return f"{number:g} minute" + ("" if number == 1 else "s")


def shortened(names: list[str], shown: int = 5) -> str:
    """Names after commas: at most `shown`, and then how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
