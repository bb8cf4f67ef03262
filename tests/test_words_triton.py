"""The stand-ins for packed assembly, against torch: what every other test of the packed kernels rests on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the extra gpu is not installed: Triton comes for Linux only")

from triton import language as tl

from tests.gluon_interpreter import SUBSTITUTES, _tensor

KINDS = {torch.bfloat16: "bf16x2", torch.float16: "f16x2"}
WARPS, LANES = 256, 128


def some_halves(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Every 16-bit pattern once, in an order of its own."""
    patterns = np.random.default_rng(seed).permutation(65536).astype(np.uint16)
    return torch.from_numpy(patterns).view(dtype).reshape(WARPS, 2 * LANES)


def words(halves: torch.Tensor) -> tl.tensor:
    return _tensor(halves.view(torch.int32).numpy(), tl.int32)


def halves_of(word: tl.tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(word.handle.data).view(dtype)


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_products_and_sums_of_words_are_those_of_their_halves(dtype: torch.dtype) -> None:
    one, other, third = (some_halves(dtype, seed) for seed in range(3))
    product = one.double() * other.double()
    for name, addend, expected in (
        # float64 holds the product, and torch rounds once from float32, which holds it where it is normal
        ("product_words", (), product.to(dtype)),
        ("sum_words", (words(torch.zeros_like(one)),), product.to(dtype)),
        # as large as the product, so that float64 holds the sum
        ("sum_words", (words(product.to(dtype)),), (product + product.to(dtype).double()).to(dtype)),
    ):
        got = halves_of(SUBSTITUTES[name](words(one), words(other), *addend, KINDS[dtype]), dtype)
        normal = ~((expected != 0) & (expected.abs() < torch.finfo(dtype).smallest_normal))
        assert_same(got[normal], expected[normal])
        step = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((got - expected).abs()[~normal] <= step).all()
    # one of three numbers where the others are NaN, and NaN where all are
    of_three = torch.stack([one, other, third]).float()
    for end, none, of in (("max", -torch.inf, torch.amax), ("min", torch.inf, torch.amin)):
        got = halves_of(
            SUBSTITUTES["extreme_words"](words(one), words(other), words(third), end, KINDS[dtype]), dtype
        )
        expected = of(torch.where(of_three.isnan(), none, of_three), dim=0)
        assert_same(got, torch.where(of_three.isnan().all(dim=0), torch.nan, expected).to(dtype))
    got = halves_of(SUBSTITUTES["positive_words"](words(one), KINDS[dtype]), dtype)
    assert_same(got, torch.clamp(one, min=0.0))


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_zeros_of_words_are_those_of_their_halves(dtype: torch.dtype) -> None:
    one = some_halves(dtype, 0)
    one[:, ::3] = -0.0
    got = SUBSTITUTES["zero_words"](words(one)).handle.data.view(np.uint16)
    np.testing.assert_array_equal(got, np.where((one == 0).numpy(), 0xFFFF, 0))


def test_negative_sizes_have_a_limit() -> None:
    one = some_halves(torch.bfloat16, 0)
    got = halves_of(SUBSTITUTES["negative_sizes"](words(one), 0x41804180), torch.bfloat16)
    assert_same(got, -torch.where(one.isnan(), 16, one.abs().clamp(max=16)))


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_conversion_into_words_rounds_to_nearest(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.integers(0, 2**32, (WARPS, 2 * LANES), np.uint32).view(np.float32))
    even, odd = (_tensor(values[:, first::2].numpy(), tl.float32) for first in (0, 1))
    name = "bfloat16_words" if dtype == torch.bfloat16 else "float16_words"
    assert_same(halves_of(SUBSTITUTES[name](even, odd), dtype), values.to(dtype))
