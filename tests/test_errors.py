"""Messages: what a terminal would obey is escaped, what is long is cut."""

import pytest

from seam.errors import SeamError, printable, shown, unknown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x1b[31mb\x07", r"a\x1b[31mb\x07"),
        ("\ud800 \u202e \x9b\r", r"\ud800 \u202e \x9b\r"),
        ("Größe █ 漢字 \U0001f600", "Größe █ 漢字 \U0001f600"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, expected):
    assert printable(text) == str(SeamError(text)) == expected


def test_long_values_are_cut():
    assert len(shown("x" * 10_000)) < 300 and shown("x" * 10_000).endswith("(10,002 characters)")
    assert len(str(unknown("layer", "x" * 1_000_000, ["a", "b"]))) < 400
