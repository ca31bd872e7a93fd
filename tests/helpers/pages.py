"""Contents of experiment pages, and figures with their files."""

from prunus.report.figure_data import FigureData
from prunus.report.figures import save_images, save_numbers


def save_line_plot(path, series, *, reference=(), **about):
    """Write the four files of a figure: PNG, SVG, HTML and CSV."""
    figure = FigureData(series, references=reference, **about)
    save_numbers(path, figure)
    return save_images(path, figure)


def content_with(word):
    """The content of a page with a word in every place."""
    verdict = {
        **dict.fromkeys(("claim", "source", "published", "measured_text", "where", "reason"), word),
        "verdict": "holds",
        "n": 2,
        "p": 0.01,
    }
    comparison = {"at": word, "more": [(word, word)], "less": [(word, word)], "same": [word]}
    words = (
        "title",
        "question",
        "paper",
        "place",
        "note",
        "about_size",
        "missing",
        "command",
        "models",
        "data",
    )
    environment = ("libraries", "machine", "device", "executor", "prunus")
    return {
        **dict.fromkeys((*words, "about_comparisons"), word),
        "experiment": "n",
        "size": "default",
        "verdicts": [verdict],
        "published": [{"where": {"curve": word}, "metric": word, "value": 1.0, "source": word}],
        "published_rows": [(word, word, word)],
        "differences": [word],
        "size_differences": [word],
        "table": [],
        "cells": {"header": [word], "rows": [(word, [(word, word)])], "shares_dense": True},
        "comparisons": [],
        "comparison_tables": [{"heading": word, "more": word, "less": word, "rows": [comparison]}],
        "invariants": {"points": 2, "passed": 1, "checks": [(word, 1, 2)], "failed": [(word, word, word)]},
        "settings": {word: word},
        "runs": [(word, word)],
        "seconds": 1.0,
        "evidence": {**dict.fromkeys(environment, word), "seeds": [0]},
    }
