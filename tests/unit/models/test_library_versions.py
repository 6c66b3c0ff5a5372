import pytest
from architectures import ADAPTERS, ARCHITECTURES, trained
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import greedy_answers, library_versions
from lit_semantic_peft.models.library_versions import cache_argument, misreads_cache, refuse_misread_cache
from torch import nn

VIRTUAL = ("prompt_tuning", "prefix_tuning", "p_tuning")


@pytest.fixture(params=VIRTUAL)
def virtual(request):
    return trained(ARCHITECTURES["llama"](), ADAPTERS[request.param]())


def installed(monkeypatch, transformers, peft):
    monkeypatch.setattr(library_versions.transformers, "__version__", transformers)
    monkeypatch.setattr(library_versions.peft, "__version__", peft)


@pytest.mark.parametrize(
    ("transformers", "peft", "expected"),
    [
        ("5.23.0", "0.21.2", False),
        ("5.24.0", "0.21.2", True),
        ("5.24.0", "0.18.0", True),
        ("5.24.0.dev0", "0.21.2", True),
        ("5.24.0", "0.22.0", False),
        ("5.0.0", "0.18.0", False),
    ],
)
def test_which_releases_misread_the_cache(monkeypatch, transformers, peft, expected):
    installed(monkeypatch, transformers, peft)
    assert misreads_cache() == expected


def test_answers_that_would_be_wrong_are_refused(virtual, monkeypatch):
    installed(monkeypatch, "5.24.0", "0.21.2")
    kind = type(virtual.active_peft_config).__name__
    with pytest.raises(InputError, match=rf"{kind} answers wrongly with transformers 5\.24\.0 and peft 0\.21\.2"):
        greedy_answers(virtual, [[2, 3]], [2], pad_id=0, stop_ids=())
    with virtual.disable_adapter():
        assert len(greedy_answers(virtual, [[2, 3]], [2], pad_id=0, stop_ids=())[0]) == 2


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_adapters_without_virtual_tokens_answer_under_every_release(adapter, monkeypatch):
    base = ARCHITECTURES["llama"]()
    model = base if adapter == "none" else trained(base, ADAPTERS[adapter]())
    installed(monkeypatch, "5.24.0", "0.21.2")
    refuse_misread_cache(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_cache_is_named_as_the_forward_names_it(architecture):
    model = ARCHITECTURES[architecture]()
    name = cache_argument(model)
    assert name in ("cache", "past_key_values")
    assert cache_argument(trained(model, ADAPTERS["lora"]())) == name
    assert cache_argument(nn.Linear(2, 2)) is None
