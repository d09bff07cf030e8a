"""Intervals of means, differences and shares."""

import numpy as np
import pytest
import torch

from tocom_core.bootstrap import _resampled_means, estimates, paired_bootstrap


def test_interval_holds_the_mean_and_narrows() -> None:
    """The interval is about ±1.96 σ/√n around the mean, and the same for the same seed."""
    values = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 0.3
    interval = paired_bootstrap(values)
    error = float(values.std()) / 400**0.5
    assert interval.mean == pytest.approx(float(values.mean()), abs=1e-6)
    assert interval.low == pytest.approx(interval.mean - 1.96 * error, abs=0.3 * error)
    assert interval.high == pytest.approx(interval.mean + 1.96 * error, abs=0.3 * error)
    assert paired_bootstrap(values).as_list() == interval.as_list()
    assert paired_bootstrap(torch.ones(5)).as_list() == [1.0, 1.0, 1.0]


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on memory decides how many draws go at once, not which."""
    table = np.random.default_rng(1).random((30, 3))
    whole = _resampled_means(table, 50, np.random.default_rng(0))
    monkeypatch.setattr("tocom_core.bootstrap._DRAWS_AT_ONCE", 100)
    assert np.allclose(whole, _resampled_means(table, 50, np.random.default_rng(0)))
    generator = np.random.default_rng(0)
    naive = [table[generator.integers(0, 30, 30)].mean(axis=0) for _ in range(50)]
    assert np.allclose(whole, naive)


def test_what_two_variants_share_cancels_out() -> None:
    """The difference of two estimates has the interval of the per-image differences."""
    generator = torch.Generator().manual_seed(0)
    plain = (torch.rand(200, generator=generator) < 0.7).double()
    better = plain.clone()
    better[:10] = 1.0
    first, second = estimates([plain, better])
    difference = (second - first).interval().as_list()
    assert difference == pytest.approx(paired_bootstrap(better - plain).as_list())
    assert (first - first).interval().as_list() == [0.0, 0.0, 0.0]
    width = first.interval().high - first.interval().low
    assert (second - first).interval().high < width


def test_a_share_needs_a_whole_that_is_surely_there() -> None:
    """Half of a clear loss is 0.5 with its interval; an unclear loss has no share."""
    lost = torch.zeros(400)
    lost[:80] = 1.0
    regained = torch.zeros(400)
    regained[:40] = 1.0
    part, whole, nothing, unclear = estimates(
        [regained, lost, torch.zeros(400), lost - lost.roll(1) * 0.99]
    )
    share = part.share_of(whole)
    assert share is not None
    interval = share.interval()
    assert interval.mean == pytest.approx(0.5)
    assert 0.35 < interval.low < 0.45 and 0.55 < interval.high < 0.65
    assert part.share_of(nothing) is None
    assert part.share_of(unclear) is None
