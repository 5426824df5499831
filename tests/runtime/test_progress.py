"""What a process tells whoever waits."""

from seam.runtime import progress


def test_phases_are_said_where_there_is_no_terminal_if_asked(capsys, monkeypatch):
    def work():
        with progress.phase("calibrate"):
            return list(progress.progress("abc", 3, "search"))

    assert work() == ["a", "b", "c"] and capsys.readouterr().err == ""
    monkeypatch.setitem(progress._said, "lines", False)  # put back afterwards
    progress.announce()
    assert work() == ["a", "b", "c"] and capsys.readouterr().err == "calibrate ...\nsearch, 3 steps ...\n"
