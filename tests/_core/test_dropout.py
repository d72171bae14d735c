"""Dropout on entries: the generator against its published answers, the kernel against a slow twin, and how models use it.

Seeds are fixed, so that no test of statistics can fail by chance; limits are those that random numbers would keep.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
import twins
from graphs import random_graph
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from torch_gas import _core
from torch_gas.graph.dropout import dropout, dropout_rows
from torch_gas.models import SAGE

FLOATS = pytest.mark.parametrize("dtype", twins.FLOATS)
seeds = st.integers(0, 2**64 - 1)


class Subclass(Tensor):
    """What has no plain memory."""


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10, word by word as it is printed in the paper."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def row_words(key: int, ids: list[int], width: int) -> list[int]:
    """The random word of each element of rows with these ids."""
    found = []
    for number in ids:
        unsigned = number % 2**64
        counters = [(unsigned % 2**32, unsigned >> 32, block, 0) for block in range((width + 3) // 4)]
        found += [word for counter in counters for word in philox(counter, (key % 2**32, key >> 32))][:width]
    return found


def words(seed: int, size: int) -> list[int]:
    """The random word of each element."""
    blocks = [philox((i, 0, 0, 0), (seed % 2**32, seed >> 32)) for i in range((size + 3) // 4)]
    return [word for block in blocks for word in block][:size]


def slow_dropout(x: Tensor, p: float, seed: int) -> Tensor:
    return multiplied(x, p, words(seed, x.numel()))


def slow_dropout_rows(x: Tensor, ids: Tensor, p: float, key: int) -> Tensor:
    return multiplied(x, p, row_words(key, ids.tolist(), x[:1].numel()))


def multiplied(x: Tensor, p: float, drawn: list[int]) -> Tensor:
    threshold = math.floor(p * 2**32 + 0.5)
    scale = 0.0 if threshold == 2**32 else 1 / (1 - p)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    factors = [scale if word >= threshold else 0.0 for word in drawn]
    return (x.to(wide) * torch.tensor(factors, dtype=torch.float64).to(wide).view(x.shape)).to(x.dtype)


def masks(num_seeds: int, *shape: int, p: float) -> Tensor:
    """What is kept, for consecutive seeds: [num_seeds, *shape]."""
    return torch.stack([_core.dropout(torch.ones(shape), p, seed) for seed in range(num_seeds)]) != 0


# --- the generator --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_twin_gives_the_known_answers_of_random123(counter, key, answer) -> None:
    assert philox(counter, key) == answer


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 0x299F31D0A4093822, 2**64 - 1])
def test_each_element_is_dropped_from_its_word_on(seed: int) -> None:
    """Thresholds are exact, so they read every bit of a word."""
    x = torch.ones(600)
    for i, word in enumerate(words(seed, x.numel())):
        assert _core.dropout(x[: i + 1], word / 2**32, seed)[i] > 0
        assert _core.dropout(x[: i + 1], (word + 1) / 2**32, seed)[i] == 0
        assert _core.dropout(x[: i + 1], (word + 0.25) / 2**32, seed)[i] > 0  # rounded to the nearest
        assert _core.dropout(x[: i + 1], (word + 0.75) / 2**32, seed)[i] == 0


# --- the kernel -----------------------------------------------------------------------------------


@FLOATS
@given(seeds, seeds, st.integers(0, 1200), st.floats(0, 1))
def test_equals_the_twin(dtype: torch.dtype, seed: int, data_seed: int, size: int, p: float) -> None:
    x = twins.random_table(torch.Generator().manual_seed(data_seed), size, (), dtype)
    twins.same_bits(_core.dropout(x, p, seed), slow_dropout(x, p, seed))


@FLOATS
@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 100_003])
def test_results_do_not_depend_on_threads(dtype: torch.dtype, size: int) -> None:
    x = twins.random_table(torch.Generator().manual_seed(1), size, (), dtype)
    torch.set_num_threads(1)
    expected = _core.dropout(x, 0.3, 7)
    assert size == 0 or not torch.equal(expected, x)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        twins.same_bits(_core.dropout(x, 0.3, 7), expected)


@FLOATS
@given(seeds, seeds, st.integers(0, 60), st.integers(0, 30), st.floats(0, 1))
def test_rows_equal_the_twin(dtype: torch.dtype, key: int, data_seed: int, num_rows: int, width: int, p: float) -> None:
    generator = torch.Generator().manual_seed(data_seed)
    x = twins.random_table(generator, num_rows, (width,), dtype)
    ids = torch.randint(-(2**63), 2**63 - 1, (num_rows,), generator=generator)
    expected = slow_dropout_rows(x, ids, p, key)
    twins.same_bits(_core.dropout_rows(x, ids, p, key), expected)
    twins.same_bits(dropout_rows(x.as_subclass(Subclass), ids, p, key).as_subclass(Tensor), expected)  # in plain torch


@FLOATS
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (257, 1), (64, 4), (1000, 6, 3), (33, 1027), (20_000, 5)])
def test_rows_do_not_depend_on_threads_nor_on_other_rows(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = twins.random_table(torch.Generator().manual_seed(1), shape[0], shape[1:], dtype)
    ids = torch.randperm(shape[0], generator=torch.Generator().manual_seed(2)) + 2**31
    torch.set_num_threads(1)
    expected = _core.dropout_rows(x, ids, 0.3, 7)
    assert x.numel() < 9 or not torch.equal(expected, x)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        twins.same_bits(_core.dropout_rows(x, ids, 0.3, 7), expected)
    order = torch.randperm(shape[0], generator=torch.Generator().manual_seed(3))[: shape[0] * 2 // 3]
    twins.same_bits(_core.dropout_rows(x[order], ids[order], 0.3, 7), expected[order])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (torch.ones(3, 2), torch.arange(3).int(), 0.5, 0),
            TypeError,
            "`ids` must be one of int64, but is torch.int32",
        ),
        (
            (torch.ones(3, 2), torch.arange(4), 0.5, 0),
            ValueError,
            r"`ids` must have one for each row of `x` \[3, 2\], but has 4",
        ),
        ((torch.ones(()), torch.arange(1), 0.5, 0), ValueError, "`x` must have rows, but is a single number"),
        ((torch.ones(2, 3).t(), torch.arange(3), 0.5, 0), ValueError, "`x` must be contiguous"),
        ((torch.ones(3, 2), torch.arange(3), 1.5, 0), ValueError, r"`p` must be in \[0, 1\], but is 1.5"),
        ((torch.ones(3, 2), torch.arange(3), 0.5, 2**64), ValueError, r"`key` must be less than 2\*\*64"),
    ],
)
def test_refusals_of_rows(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"dropout_rows: {message}"):
        _core.dropout_rows(*arguments)


@FLOATS
def test_all_or_none(dtype: torch.dtype) -> None:
    x = torch.tensor([1.5, -2.0, 0.0, -0.0, float("inf"), float("nan")] * 100, dtype=dtype)
    twins.same_bits(_core.dropout(x, 0, 3), x)
    twins.same_bits(_core.dropout(x, 2.0**-60, 3), x)
    for p in (1, 1 - 2.0**-40):
        twins.same_bits(_core.dropout(x, p, 3), x * 0)
    assert _core.dropout(x, 1, 3).isnan().sum() == 200  # of infinity and NaN, as in torch
    twins.same_bits(_core.dropout(x, 1, 3), F.dropout(x, 1.0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], 0.5, 0), TypeError, "dropout: `x` must be a torch.Tensor, but is list"),
        (
            (torch.ones(3, dtype=torch.int64), 0.5, 0),
            TypeError,
            "dropout: `x` must be one of float32, .*, but is torch.int64",
        ),
        ((torch.ones(3, device="meta"), 0.5, 0), ValueError, "dropout: `x` must be on the host, but is on meta"),
        ((torch.ones(3, 2).t(), 0.5, 0), ValueError, "dropout: `x` must be contiguous"),
        ((torch.ones(3), "0.5", 0), TypeError, "dropout: `p` must be a number, but is str"),
        ((torch.ones(3), -0.1, 0), ValueError, r"dropout: `p` must be in \[0, 1\], but is -0.1"),
        ((torch.ones(3), 1.1, 0), ValueError, r"dropout: `p` must be in \[0, 1\], but is 1.1"),
        ((torch.ones(3), float("nan"), 0), ValueError, r"dropout: `p` must be a number, but is nan"),
        ((torch.ones(3), 0.5, 1.0), TypeError, "dropout: `seed` must be an int, but is float"),
        ((torch.ones(3), 0.5, -1), ValueError, "dropout: `seed` must not be negative, but is -1"),
        (
            (torch.ones(3), 0.5, 2**64),
            ValueError,
            r"dropout: `seed` must be less than 2\*\*64, but is 18446744073709551616",
        ),
    ],
)
def test_refusals(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _core.dropout(*arguments)


def test_gradients_of_rows() -> None:
    ids = torch.tensor([5, -3, 5, 2**62])
    for x in (
        torch.randn(4, 3, 2, dtype=torch.float64),
        torch.randn(4, 3, 2, dtype=torch.float64).as_subclass(Subclass),
    ):
        x.requires_grad_()
        out = dropout_rows(x, ids, 0.4, 3)
        mask = slow_dropout_rows(torch.ones(4, 6, dtype=torch.float64), ids, 0.4, 3).view(4, 3, 2)
        assert torch.equal(out.detach().as_subclass(Tensor), x.detach().as_subclass(Tensor) * mask)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert torch.equal(grad.as_subclass(Tensor), mask)


def test_entries_of_a_sparse_matrix_are_those_of_the_dense_one() -> None:
    x = torch.randn(9, 11, dtype=torch.float64).relu()
    ids = torch.arange(9) * 7
    out = dropout_rows(x.to_sparse_csr(), ids, 0.5, 1)
    assert torch.equal(out.to_dense(), dropout_rows(x, ids, 0.5, 1))


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.8, 0.999])
def test_rates_of_dropping_have_the_mean_and_the_variance_of_independent_draws(p: float) -> None:
    size, num_seeds = 5000, 2000
    rates = 1 - masks(num_seeds, size, p=p).double().mean(1)
    variance = p * (1 - p) / size
    assert abs(rates.mean() - p) < 5 * math.sqrt(variance / num_seeds)
    # A variance that is measured from n draws has a standard deviation of sqrt(2 / n) of itself.
    assert abs(rates.var() / variance - 1) < 5 * math.sqrt(2 / num_seeds)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_no_correlation_between_neighbours(p: float) -> None:
    signs = (masks(60, 128, 128, p=p).double() - (1 - p)) / math.sqrt(p * (1 - p))
    flat = signs.view(60, -1)
    pairs = {f"elements {k} apart": (flat[:, k:], flat[:, :-k]) for k in (1, 2, 3, 4, 5, 8, 16, 64, 256)}
    pairs["rows"] = (signs[:, 1:], signs[:, :-1])
    pairs["diagonals"] = (signs[:, 1:, 1:], signs[:, :-1, :-1])
    pairs["seeds"] = (signs[1:], signs[:-1])
    pairs["elements and seeds"] = (flat[1:, 4:], flat[:-1, :-4])
    for name, (a, b) in pairs.items():
        correlation = float((a * b).mean())
        assert abs(correlation) * math.sqrt(a.numel()) < 5, name


@pytest.mark.parametrize("shift", [0, 1, 2, 3])
def test_patterns_of_four_neighbours_are_equally_frequent(shift: int) -> None:
    kept = masks(100, 4 * 500, p=0.5).roll(-shift, dims=1).view(-1, 4)
    counts = torch.bincount(kept.long() @ torch.tensor([8, 4, 2, 1]), minlength=16).double()
    expected = kept.size(0) / 16
    chi_square = float(((counts - expected) ** 2).sum() / expected)
    # With 15 degrees of freedom: mean 15, standard deviation sqrt(30). Too even would be as wrong as too uneven.
    assert 2 < chi_square < 15 + 5 * math.sqrt(30)


def test_seeds_that_differ_in_one_bit_give_other_masks() -> None:
    first = _core.dropout(torch.ones(4096), 0.5, 0)
    for bit in range(64):
        equal = int((_core.dropout(torch.ones(4096), 0.5, 1 << bit) == first).sum())
        assert abs(equal - 2048) < 5 * 32


# --- as models use it -----------------------------------------------------------------------------


def again(x: Tensor, p: float = 0.4) -> Tensor:
    torch.manual_seed(5)
    return dropout(x, p, True)


@FLOATS
def test_the_gradient_is_that_of_a_product_with_the_mask(dtype: torch.dtype) -> None:
    x = torch.randn(30, 7, dtype=dtype, requires_grad=True)
    out = again(x)
    mask = again(torch.ones_like(x)).detach()
    assert mask.unique().tolist() == [0, torch.tensor(1 / 0.6, dtype=dtype).item()]
    assert out.dtype == dtype
    grad = torch.randn_like(x)
    out.backward(grad)
    torch.testing.assert_close(out.detach(), x.detach() * mask)
    torch.testing.assert_close(x.grad, grad * mask)
    assert torch.equal(x.grad == 0, mask == 0)


def test_gradients_of_sums_and_of_views() -> None:
    """A sum's gradient is one number with strides of 0; a transposed tensor is no contiguous one."""
    x = torch.randn(6, 50, dtype=torch.float64, requires_grad=True)
    out = again(x.t())
    assert out.is_contiguous()
    mask = again(torch.ones(50, 6, dtype=torch.float64))
    assert torch.equal(out, x.t() * mask)
    out.sum().backward()
    assert torch.equal(x.grad, mask.t())


@pytest.mark.filterwarnings("ignore:Please use .torch.vmap.:FutureWarning")  # torch 2.4 itself
def test_derivatives_of_every_order_and_direction() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(again, (x,), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(again, (x,), check_fwd_over_rev=True, check_batched_grad=True)
    square = again(x) ** 2
    (grad,) = torch.autograd.grad(square.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, 2 * again(torch.ones_like(x)).detach() ** 2)


def test_no_mask_is_kept() -> None:
    x = torch.randn(100, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t), lambda t: t):
        dropout(x, 0.5, True)
    assert kept == []


def test_manual_seed_makes_masks_reproducible() -> None:
    x = torch.ones(1000)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5, True), dropout(x, 0.5, True)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5, True), first)
    state = torch.get_rng_state()
    assert torch.equal(dropout(x, 0.5, True), second)
    torch.set_rng_state(state)
    torch.set_num_threads(2)
    assert torch.equal(dropout(x, 0.5, True), second)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (4, 0, 2), (3, 5, 7, 2)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, requires_grad=True)
    out = dropout(x, 0.5, True)
    assert out.shape == shape and bool(((out == 0) | (out == 2)).all())
    out.sum().backward()
    assert torch.equal(x.grad, out)


def test_nothing_to_drop() -> None:
    x = torch.randn(10)
    state = torch.get_rng_state()
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0, training=True) is x
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(dropout(x, 1, training=True), x * 0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_wrong_probabilities(p: float, training: bool) -> None:
    with pytest.raises(ValueError, match=rf"dropout: p must lie in \[0, 1\], but is {p}"):
        dropout(torch.ones(3), p, training)


def test_modes() -> None:
    x = torch.ones(500, requires_grad=True)
    expected = again(x, 0.5).detach()
    with torch.no_grad():
        out = again(x, 0.5)
    assert torch.equal(out, expected) and not out.requires_grad
    with torch.inference_mode():
        assert torch.equal(again(torch.ones(500), 0.5), expected)
    with torch.autocast("cpu", torch.bfloat16):
        out = again(x, 0.5)
    assert out.dtype == torch.float32 and torch.equal(out, expected)
    with torch.device("meta"):
        assert torch.equal(again(x, 0.5), expected)


@pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast:FutureWarning")  # torch 2.4 itself
def test_checkpoints_draw_the_same_mask_again() -> None:
    x = torch.ones(50, requires_grad=True)
    out = checkpoint(lambda t: dropout(t, 0.5, True) * t, x, use_reentrant=False)
    out.sum().backward()
    assert torch.equal(x.grad, 2 * out) and out.unique().tolist() == [0, 2]


def test_lazily_negated_views() -> None:
    x = torch._neg_view(torch.ones(40))  # as the imaginary part of a conjugate is
    assert x.is_neg() and x.is_contiguous()
    assert again(x, 0.5).unique().tolist() == [-2, 0]


@pytest.mark.parametrize(
    ("x", "call"),
    [
        (torch.ones(40, device="meta"), again),
        (torch.ones(40).as_subclass(Subclass), again),
        (torch.ones(40), torch.vmap(again, randomness="different")),
        (torch.ones(40), torch.func.grad(lambda x: again(x).sum())),
        (torch.ones(40), torch.compile(again, backend="eager")),
    ],
    ids=["device", "subclass", "vmap", "func.grad", "compile"],
)
def test_what_goes_to_torch(x: Tensor, call, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("reached the kernel")

    monkeypatch.setattr(_core, "dropout", refuse)
    out = call(x)
    assert type(out) is type(x) and out.device == x.device and out.dtype == x.dtype
    if x.device.type == "cpu":
        assert out.unique().numel() == 2


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
def test_a_trace_draws_masks_anew() -> None:
    traced = torch.jit.trace(lambda x: dropout(x, 0.5, True), (torch.ones(40),), check_trace=False)
    assert not torch.equal(traced(torch.ones(40)), traced(torch.ones(40)))


def test_other_types_get_the_answer_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked = torch.empty(()), []
    monkeypatch.setattr(F, "dropout", lambda x, p: asked.append((x.dtype, p)) or answer)
    assert dropout(torch.ones(40, dtype=torch.complex64), 0.5, True) is answer
    assert asked == [(torch.complex64, 0.5)]


def test_what_does_not_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("reached torch")

    monkeypatch.setattr(F, "dropout", refuse)
    data = random_graph(60, 240)
    model = SAGE(60, data.x.size(1), 8, 3, num_layers=3, dropout=0.5).train()
    model(data.x, data.edge_index).sum().backward()
    first, second = model(data.x, data.edge_index), model(data.x, data.edge_index)
    assert not torch.equal(first, second)
    with pytest.raises(AssertionError, match="reached torch"):
        dropout(data.x.to("meta"), 0.5, True)


def test_tensors_of_functionalize() -> None:
    """Their entries have no memory: torch drops them."""
    dropped = torch.func.functionalize(lambda x: dropout(x, 0.5, training=True))(torch.ones(20, 30))
    assert dropped.unique().tolist() == [0.0, 2.0]


def test_entries_with_a_negative_bit() -> None:
    results = []
    for x in (torch.arange(1.0, 601).view(20, 30), torch._neg_view(-torch.arange(1.0, 601).view(20, 30))):
        torch.manual_seed(0)
        results.append(dropout(x, 0.5, training=True))
    assert torch.equal(*results)
