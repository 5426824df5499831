"""What a process tells whoever waits."""

import re

from seam.runtime import progress


def test_phases_are_said_where_there_is_no_terminal_if_asked(capsys, monkeypatch):
    def work():
        with progress.phase("calibrate"):
            return list(progress.progress("abc", 3, "search"))

    assert work() == ["a", "b", "c"] and capsys.readouterr().err == ""
    monkeypatch.setitem(progress._said, "lines", False)  # put back afterwards
    progress.announce()
    assert work() == ["a", "b", "c"] and capsys.readouterr().err == "calibrate ...\nsearch, 3 steps ...\n"


def test_a_line_now_and_then_tells_how_far_it_is(capsys, monkeypatch):
    notes = {}

    def work():
        for i in progress.progress(range(4), 4, "search", notes):
            notes["loss"] = 2.0 / (i + 1)

    work()
    assert capsys.readouterr().err == ""  # over in less than a minute
    monkeypatch.setattr(progress, "EVERY", -1.0)
    work()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"search: 2 of 4, loss 1, [\d.e+]+ a second, 0:00:00 left", lines[1])
    monkeypatch.setitem(progress._said, "quiet", True)
    work()
    assert capsys.readouterr().err == ""
