import pytest
import torch
from lit_semantic_peft.metrics import Retention


def test_retention_weighs_texts_by_tokens_and_is_exactly_zero_where_nothing_changed():
    nll = torch.rand(7, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(1, 8)
    metric = Retention()
    metric.update(nll, nll, tokens, torch.ones(3, dtype=torch.bool))
    result = metric.compute()
    assert result["retention_nll_delta"].item() == 0
    assert result["retention_known"].item() == 1
    assert result["retention_nll_before"].item() == pytest.approx((nll.double() * tokens).sum().item() / 28)
    assert Retention().compute()["retention_nll_delta"].isnan()
