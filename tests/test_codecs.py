# SPDX-License-Identifier: Apache-2.0
"""Codecs against literal values, against ONNX's own reading of the bits, and against what rounding must cost."""

import numpy as np
import onnx
import pytest

from edgereels.quant import codecs
from edgereels.quant.codecs import pack_int4, quantize_int4, quantize_int8, to_bfloat16, to_float16, unpack_int4
from edgereels.runtime.errors import PackageError

NORMAL = np.random.default_rng(11).standard_normal((256, 192)).astype(np.float32)


def sqnr_db(ours: np.ndarray, theirs: np.ndarray) -> float:
    noise = np.square(ours.astype(np.float64) - theirs).sum()
    return 10 * np.log10(np.square(theirs.astype(np.float64)).sum() / noise)


def floats_of(found: codecs.Quantized, *, shape: tuple[int, int]) -> np.ndarray:
    values = unpack_int4(found.values, shape=shape).reshape(-1, 64, shape[1])
    return (values * found.scales[:, None]).reshape(shape)


def test_int8_of_known_weights() -> None:
    weights = np.array([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0], [-2.54, 1.27, 0.01]], np.float32)
    found = quantize_int8(weights, axis=0)
    assert found.values.tolist() == [[127, -64, 32], [0, 0, 0], [-127, 64, 0]]  # 63.5 and 31.75; half goes to even
    assert found.scales.tolist() == pytest.approx([1 / 127, 1.0, 0.02])


def test_seven_bits_end_at_63() -> None:
    found = quantize_int8(NORMAL, axis=1, bits=7)
    assert (found.values.min(), found.values.max()) == (-63, 63)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_channel_s_scale_is_its_own(axis: int) -> None:
    # Channels 1000 times apart: a scale for all of them would leave the small ones at nothing.
    weights = NORMAL * np.expand_dims(10.0 ** -np.linspace(0, 3, NORMAL.shape[axis]), 1 - axis).astype(np.float32)
    found = quantize_int8(weights, axis=axis)
    back = found.values * np.expand_dims(found.scales, 1 - axis)
    assert (
        np.min([sqnr_db(*pair) for pair in zip(np.moveaxis(back, axis, 0), np.moveaxis(weights, axis, 0), strict=True)])
        > 35
    )


@pytest.mark.parametrize(("bits", "least"), [(8, 41.0), (7, 35.0)])
def test_what_int8_costs(bits: int, least: float) -> None:
    found = quantize_int8(NORMAL, axis=1, bits=bits)  # normal weights, peak at 3 sigma: 6.02 bits + 4.8 - 9.5 dB
    assert least < sqnr_db(found.values * found.scales, NORMAL) < least + 3


def test_int8_of_a_kernel_keeps_its_shape() -> None:
    kernel = np.random.default_rng(1).standard_normal((8, 4, 3, 3, 3)).astype(np.float32)
    found = quantize_int8(kernel, axis=0)
    assert (found.values.shape, found.scales.shape) == (kernel.shape, (8,))
    assert sqnr_db(found.values * found.scales.reshape(8, 1, 1, 1, 1), kernel) > 40


def test_int4_of_a_known_block() -> None:
    weights = np.zeros((64, 2), np.float32)
    weights[:9, 0] = [-8, -7, -3, -1, 0, 1, 2, 6, 7]
    found = quantize_int4(weights, input_axis=0)
    values = unpack_int4(found.values, shape=(64, 2))
    assert found.scales.tolist() == [[1.0, 1.0]]
    assert values[:9, 0].tolist() == [-8, -7, -3, -1, 0, 1, 2, 6, 7]
    assert not values[:, 1].any()


def test_int4_takes_the_sign_of_its_largest_weight_into_the_scale() -> None:
    weights = np.linspace(-0.5, 1.0, 64, dtype=np.float32)[:, None]
    assert quantize_int4(weights, input_axis=0).scales[0, 0] < 0


def test_clipping_costs_less_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    searched = sqnr_db(floats_of(quantize_int4(NORMAL, input_axis=0), shape=NORMAL.shape), NORMAL)
    monkeypatch.setattr(codecs, "CLIPS", ())
    plain = sqnr_db(floats_of(quantize_int4(NORMAL, input_axis=0), shape=NORMAL.shape), NORMAL)
    assert searched > 20.5
    assert searched > plain + 0.3


def test_int4_of_a_gemm_is_stored_with_its_inputs_first() -> None:
    straight, turned = quantize_int4(NORMAL, input_axis=0), quantize_int4(NORMAL.T.copy(), input_axis=1)
    assert np.array_equal(straight.values, turned.values)
    assert np.array_equal(straight.scales, turned.scales)


def test_int4_needs_whole_blocks() -> None:
    with pytest.raises(ValueError, match="40 inputs are no multiple of 64"):
        quantize_int4(np.zeros((40, 4), np.float32), input_axis=0)


@pytest.mark.parametrize("shape", [(4, 3), (3, 3)], ids=["even", "odd"])
def test_packed_values_are_what_onnx_reads(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(-8, 8, shape, dtype=np.int8)
    tensor = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.INT4, dims=shape, raw_data=pack_int4(values).tobytes()
    )
    assert np.array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), values)
    assert np.array_equal(unpack_int4(pack_int4(values), shape=shape), values)


@pytest.mark.parametrize("axis", [0, 1])
def test_slices_give_the_same_values_as_the_whole(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, whole4 = quantize_int8(NORMAL, axis=axis), quantize_int4(NORMAL, input_axis=0)
    monkeypatch.setattr(codecs, "WORKING_BYTES", 4 * NORMAL.shape[1 - axis] * 7)
    pieces, pieces4 = quantize_int8(NORMAL, axis=axis), quantize_int4(NORMAL, input_axis=0)
    assert np.array_equal(whole.values, pieces.values)
    assert np.array_equal(whole.scales, pieces.scales)
    assert np.array_equal(whole4.values, pieces4.values)
    assert np.array_equal(whole4.scales, pieces4.scales)


def test_half_precision_weights_are_taken() -> None:
    found = quantize_int8(NORMAL.astype(np.float16), axis=1)
    assert sqnr_db(found.values * found.scales, NORMAL) > 40


def test_float16_refuses_what_it_can_not_hold() -> None:
    assert to_float16(np.array([65504.0, 1 / 3], np.float32), name="w")[1] == np.float16(1 / 3)
    with pytest.raises(PackageError, match=r"w reaches 7e\+04, float16 ends at 65504"):
        to_float16(np.array([7e4], np.float32), name="w")


def test_bfloat16_rounds_half_to_even() -> None:
    values = np.array([1.0, -2.0, 1.00390625, 1.01171875, 3.3e38], np.float32)  # the third and fourth lie half-way
    assert [hex(bits) for bits in to_bfloat16(values)] == ["0x3f80", "0xc000", "0x3f80", "0x3f82", "0x7f78"]
