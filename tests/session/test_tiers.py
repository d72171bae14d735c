"""Where histories live by the options that tests on a GPU give, with a driver in place of CUDA's."""

from __future__ import annotations

import pytest
from driver import Driver, gpu_pool
from nets import Net
from tiers import TIERS, where
from torch._subclasses.fake_tensor import FakeTensorMode


def test_histories_on_the_device() -> None:
    with FakeTensorMode():  # which has tensors on a GPU, without memory
        model = Net(60, num_layers=4, **where("device"))
        assert [history.tier for history in model.histories] == ["device"] * 3


@pytest.mark.parametrize("tier", sorted({*TIERS} - {"device"}))
def test_histories_elsewhere(driver: Driver, tier: str) -> None:
    model = Net(60, num_layers=4, **where(tier))
    model._session.use_pool(gpu_pool())  # as a call does when the model is on a GPU
    assert [history.tier for history in model.histories] == [tier] * 3
    assert len(driver.ranges) == (3 if tier == "pinned" else 0)
