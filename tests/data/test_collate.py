"""Rows of examples and their padding."""

import pickle
from array import array

import numpy as np
import pytest
import torch

from lit_sft.conversation import IGNORE_INDEX, Example
from lit_sft.data.batch import PairBatch
from lit_sft.data.collate import collate, collate_pairs

X = IGNORE_INDEX
A = Example([5, 6, 7], [X, 6, 7], "a:1")
B = Example([8], [X], "a:2")
C = Example([3, 4], [3, 4], "b:1", corpus=1)


def test_rows_are_padded_on_the_right_without_loss() -> None:
    batch = collate([[A], [B]], pad_token_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.labels.tolist() == [[X, 6, 7], [X, X, X]]
    assert batch.segment_ids.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.sources == ["a:1", "a:2"]
    assert batch.position_ids is None


def test_examples_of_a_row_follow_each_other_and_count_from_zero() -> None:
    batch = collate([[A, C, B], [C]], pad_token_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 7, 3, 4, 8], [3, 4, 9, 9, 9, 9]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 3], [1, 1, 0, 0, 0, 0]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]]
    assert batch.sources == ["a:1", "b:1", "a:2", "b:1"]


def test_the_first_token_of_an_example_is_not_predicted_from_its_neighbor() -> None:
    assert collate([[A, C], [C]], pad_token_id=9).labels.tolist() == [[X, 6, 7, X, 4], [X, 4, X, X, X]]


def test_sequences_of_an_example_are_segments_of_their_own() -> None:
    two = Example([5, 6, 7, 5, 8], [X, 6, 7, X, 8], "a:3", starts=[0, 3])
    batch = collate([[two]], pad_token_id=9)
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.sources == ["a:3"]
    packed = collate([[A, two, C]], pad_token_id=9)
    assert packed.segment_ids.tolist() == [[1, 1, 1, 2, 2, 2, 3, 3, 4, 4]]
    assert packed.corpus_ids.tolist() == [[0] * 8 + [1] * 2]


PAIR = Example([5, 6, 7, 5, 8], [X, 6, 7, X, 8], "p:1", starts=[0, 3], judgment=0.5)
THREE = Example([5, 1, 5, 2, 5, 3], [X, 1, X, 2, X, 3], "r:1", corpus=1, starts=[0, 2, 4])
BAD = Example([5, 4], [X, 4], "j:1", judgment=0.0)


def test_pairs_name_segments_over_all_rows() -> None:
    batch = collate_pairs([[BAD, PAIR], [THREE]], pad_token_id=9, corpora=["a", "b"])
    assert batch.sources == ["j:1", "p:1", "r:1"]
    assert batch.sequences.tolist() == [0, 1, 1, 2, 2, 2]
    assert batch.sequence_corpora.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.pairs.tolist() == [[1, 2], [3, 4], [3, 5], [4, 5]]
    assert batch.margins.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert batch.is_good.tolist() == [False, True, False, True, False, False]


def test_a_batch_of_no_pairs_has_the_shape_of_one() -> None:
    batch = collate_pairs([], pad_token_id=9)
    assert (batch.pairs.shape, batch.margins.shape, batch.is_good.shape) == ((0, 2), (0,), (0,))
    assert batch.input_ids.tolist() == [[9]]


def test_a_batch_of_pairs_stays_one_on_its_way_to_the_device() -> None:
    batch = collate_pairs([[PAIR]], pad_token_id=9)
    for sent in (batch.to("meta"), pickle.loads(pickle.dumps(batch))):  # type: ignore[arg-type]
        assert isinstance(sent, PairBatch)
        assert sent.pairs.shape == (1, 2)
    assert batch.to("meta").pairs.device.type == "meta"  # type: ignore[arg-type]


def test_every_position_names_its_corpus() -> None:
    batch = collate([[A, C], [C]], pad_token_id=9, corpora=["a", "b"])
    assert batch.corpora == ["a", "b"]
    assert batch.corpus_ids.tolist() == [[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]]


def test_tokens_are_counted_without_padding_and_supervised_ones_where_they_carry_loss() -> None:
    batch = collate([[A, C], [B]], pad_token_id=9)
    assert (batch.num_tokens, batch.num_supervised) == (6, 3)


def test_a_batch_of_nothing_is_one_row_of_padding_without_loss() -> None:
    batch = collate([], pad_token_id=9, corpora=["a", "b"], epoch_progress=1.0)
    assert batch.input_ids.tolist() == [[9]]
    assert batch.labels.tolist() == [[X]]
    assert batch.segment_ids.tolist() == [[0]]
    assert (batch.num_tokens, batch.num_supervised, batch.sources) == (0, 0, [])
    assert (batch.corpora, batch.epoch_progress) == (["a", "b"], 1.0)


@pytest.mark.parametrize("kind", [np.int32, np.uint16, lambda ids: array("i", ids), tuple])
def test_ids_of_any_kind_become_int64(kind: type) -> None:
    as_numpy = Example(np.array([5, 6]), np.array([X, 6], np.int32))
    batch = collate([[as_numpy, Example(kind([7, 8]), [X, 8])]], pad_token_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8]]
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    assert batch.segment_ids.dtype == torch.int32


def test_a_batch_goes_to_another_process_as_bytes_and_comes_back_whole() -> None:
    batch = collate([[Example([1, 2, 3], [-100, 2, 3]), Example([4, 5], [-100, 5])]], 0)
    sent = pickle.dumps(batch)
    received = pickle.loads(sent)
    assert b"rebuild_tensor" not in sent  # which would share memory
    for name, value in vars(batch).items():
        other = getattr(received, name)
        assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value


@pytest.mark.parametrize(("device", "waits"), [("cuda:0", False), ("cpu", True)])
def test_only_a_copy_to_a_gpu_is_not_waited_for(device: str, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def to(tensor: torch.Tensor, device: str, *, non_blocking: bool) -> torch.Tensor:
        asked.append((device, non_blocking))
        return tensor

    batch = collate([[A, C], [B]], pad_token_id=9)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch.to(device)  # type: ignore[arg-type]
    assert set(asked) == {(device, not waits)}
