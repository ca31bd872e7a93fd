"""Tables of results: aligned, folded where they are wider than the terminal, without control codes."""

import json

from prunus.cli.output import FILE_WIDTH, echo_json_list, echo_table


def test_numbers_are_aligned_right_below_the_title_and_above_the_footer(capsys):
    rows = [["fc1", "a\x1b[2J", "1"], ["é 世界", "", "1,234"], ["total", "", "1,235"]]
    echo_table(("layer", "note", "weights"), rows, text_columns=2, footer=1, title="Layers")
    assert capsys.readouterr().out.splitlines() == [
        "Layers",
        "layer    note       weights",
        "───────────────────────────",
        r"fc1      a\x1b[2J         1",
        "é 世界                1,234",
        "───────────────────────────",
        "total                 1,235",
    ]


def test_a_table_that_is_too_wide_is_folded_at_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    echo_table(("name", "text"), [["long-name", "three four"], ["b", "seventeen-letters"]], text_columns=1)
    assert capsys.readouterr().out.splitlines() == [
        "name            text",
        "────────────────────",
        "long-nam       three",
        "e               four",
        "b          seventeen",
        "            -letters",
    ]
    monkeypatch.setenv("COLUMNS", "29")
    echo_table(("run", "experiments"), [["ticket-3f4b6afd", "of one, two and three"]], text_columns=2)
    assert capsys.readouterr().out.splitlines() == [
        "run               experiments",
        "─────────────────────────────",
        "ticket-3f4b6afd   of one, two",
        "                  and three  ",
    ]
    monkeypatch.delenv("COLUMNS")
    echo_table(("a",), [["x" * (FILE_WIDTH + 1)]])
    assert capsys.readouterr().out.splitlines()[2:] == ["x" * FILE_WIDTH, "x".ljust(FILE_WIDTH)]


def test_a_list_is_json_with_one_element_per_line(capsys):
    for values in ([], [{"a": [1, 2]}], [{"a": "\n"}, None]):
        echo_json_list(values)
        printed = capsys.readouterr().out
        assert json.loads(printed) == values
        assert len(printed.splitlines()) == (len(values) + 2 if values else 1)
