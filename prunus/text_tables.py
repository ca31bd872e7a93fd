"""Tables and counts as text, for `print`."""

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]], text_columns: int) -> str:
    """Lines in which the cells of each column have the same width, two spaces apart.

    Args:
        rows: The header and the rows.
        text_columns: The number of columns, from the left, that are aligned left; the others are aligned right.

    Returns:
        One line per row.

    >>> print(text_table([("layer", "bytes"), ("fc", "12")], text_columns=1))
    layer  bytes
    fc        12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.ljust if column < text_columns else str.rjust for column in range(len(widths))]
    lines = (
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def pluralize(number: int, unit: str) -> str:
    """Format a number with its unit in singular or plural.

    Args:
        number: The number, an integer.
        unit: The unit in singular, whose plural ends in an additional "s".

    Returns:
        The number, with commas between thousands, and the unit.

    >>> pluralize(1, "weight"), pluralize(8232, "weight")
    ('1 weight', '8,232 weights')
    """
    return f"{number:,} {unit}{'' if number == 1 else 's'}"
