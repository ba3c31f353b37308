"""Rows and their padding."""

from lit_sft.conversation import IGNORE_INDEX, Example
from lit_sft.data.collate import collate, pad_left

X = IGNORE_INDEX


def test_rows_are_padded_on_the_right_without_loss() -> None:
    batch = collate([Example([5, 6, 7], [X, 6, 7], "a:1"), Example([8], [X], "a:2")], pad_token_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.labels.tolist() == [[X, 6, 7], [X, X, X]]
    assert batch.segment_ids.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.sources == ["a:1", "a:2"]


def test_tokens_are_counted_without_padding() -> None:
    batch = collate([Example([5, 6, 7], [X, 6, 7]), Example([8], [X])], pad_token_id=9)
    assert (batch.num_tokens, batch.num_supervised) == (4, 2)


def test_the_first_position_predicts_nothing_and_is_not_counted() -> None:
    assert collate([Example([5, 6], [5, 6])], pad_token_id=9).num_supervised == 1


def test_prompts_are_padded_on_the_left() -> None:
    input_ids, mask = pad_left([[1, 2, 3], [4]], pad_token_id=9)
    assert input_ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
