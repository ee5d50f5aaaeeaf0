"""Answers as the terminal shows them."""

from epochal.pipelines.results import answer


def test_an_embedding_is_shown_by_its_beginning():
    assert answer({"input": "a.png", "embedding": [0.5, -1.0]}) == "input a.png  embedding 0.5 -1"
    shown = answer({"input": "a.png", "embedding": [0.125] * 64})
    assert shown.endswith("  embedding 0.125 0.125 0.125 0.125 … (64 numbers: --json)")
