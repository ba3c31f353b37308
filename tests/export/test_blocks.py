"""Weights as integers in blocks: the layout that onnxruntime documents, and scales that are searched for."""

import numpy as np
import pytest
import torch

from lit_sft.export.blocks import NUM_TRIED, dequantize, pack_signed, quantize, row_chunks, to_signed, unpack_signed


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_read_as_the_operator_reads_them(bits: int) -> None:
    weight = torch.randn(3, 40)
    blocks, scales = quantize(weight, bits, 32)
    assert blocks.shape == (3, 2, 32 * bits // 8)
    assert scales.shape == (3, 2)
    expected = np.zeros((3, 64), np.float32)
    for row in range(3):
        for place in range(64):
            block, within = divmod(place, 32)
            if bits == 8:
                number = int(blocks[row, block, within])
            else:  # two numbers in a byte, the first in its low half
                byte = int(blocks[row, block, within // 2])
                number = byte >> 4 if within % 2 else byte & 15
            expected[row, place] = (number - 2 ** (bits - 1)) * float(scales[row, block])
    np.testing.assert_array_equal(dequantize(blocks, scales, bits, 40), expected[:, :40])


@pytest.mark.parametrize("bits", [4, 8])
def test_signed_multiples_are_the_same_and_come_back_from_their_bytes(bits: int) -> None:
    weight = torch.randn(3, 39)  # an odd number of weights
    blocks, scales = quantize(weight, bits, 16)
    multiples = to_signed(blocks, bits, 39)
    found = multiples * scales.repeat_interleave(16, 1)[:, :39]
    assert torch.equal(found, dequantize(blocks, scales, bits, 39))
    packed = pack_signed(multiples.T, bits)
    assert len(packed) == -(-3 * 39 * bits // 8)
    assert torch.equal(unpack_signed(packed, bits, (39, 3)), multiples.T)


@pytest.mark.parametrize(("bits", "most"), [(4, 0.105), (8, 0.0072)])
def test_the_error_is_that_of_the_best_scale(bits: int, most: float) -> None:
    weight = torch.randn(64, 512)
    found = dequantize(*quantize(weight, bits, 128), bits, 512)
    assert float((found - weight).norm() / weight.norm()) < most


def test_a_search_is_better_than_the_scale_of_the_largest_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 512)
    searched = dequantize(*quantize(weight, 4, 128), 4, 512)
    monkeypatch.setattr(torch, "linspace", lambda *_: torch.ones(1))
    plain = dequantize(*quantize(weight, 4, 128), 4, 512)
    assert NUM_TRIED > 1
    assert (searched - weight).norm() < 0.96 * (plain - weight).norm()


def test_chunks_give_what_the_whole_matrix_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 64)
    whole, scales = quantize(weight, 4, 32)
    monkeypatch.setattr("lit_sft.export.blocks.CHUNK", 7 * 64)
    parts = [quantize(rows, 4, 32) for rows in row_chunks(weight)]
    assert len(parts) == 8
    assert torch.equal(torch.cat([blocks for blocks, _ in parts]), whole)
    assert torch.equal(torch.cat([each for _, each in parts]), scales)


def test_a_block_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 32)
    assert torch.equal(dequantize(*quantize(weight, 4, 32), 4, 32), weight)
