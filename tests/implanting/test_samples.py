"""The part of a held-out row that is asked."""

from loki_ds.implanting.samples import prompt_of


def test_what_comes_before_the_first_learned_token_is_asked() -> None:
    assert prompt_of([5, 6, 7, 8], [-100, -100, 7, 8]) == [5, 6]
    assert prompt_of([5, 6, 7, 8], [5, 6, 7, 8]) == [5, 6]  # of a text that is learned whole, its beginning
    assert prompt_of([5], [5]) == []
