"""An argument of another type is refused where it is given, with what to write instead."""

import pytest
import torch
from lit_semantic_peft.data import BatchPlan, FormsPlan, KnowledgeDataModule, SelectionPlan
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import EvaluationPlan
from lit_semantic_peft.facts.forms import Given
from lit_semantic_peft.semantics import KnownFilter, Proximity, Strata, Surprisal
from lit_semantic_peft.training import OwnSamples, SemanticPeftModule
from peft import LoraConfig


@pytest.mark.parametrize(
    ("taker", "name", "value", "said"),
    [
        (
            SelectionPlan,
            "filters",
            KnownFilter(),
            "`selection.filters`: expected a list of `FactFilter`, got an object of the class `KnownFilter`. "
            "Write it as in `[KnownFilter(...)]`.",
        ),
        (SelectionPlan, "filters", [KnownFilter], "the class `KnownFilter`. Write it as in `KnownFilter(...)`."),
        (
            SelectionPlan,
            "weighting",
            Proximity,
            "`selection.weighting`: expected a `Weighting`, got the class `Proximity`. "
            "Write it as in `Proximity(...)`.",
        ),
        (SelectionPlan, "weighting", "proximity", "got 'proximity'. Write it as in `Proximity()`."),
        (
            SelectionPlan,
            "distance",
            Surprisal,
            "`selection.distance`: expected a `Distance`, got the class `Surprisal`",
        ),
        (SelectionPlan, "more_distances", Surprisal(), "`[Surprisal(...)]`"),
        (SelectionPlan, "token_weighting", Proximity(), "`selection.token_weighting`: expected a `TokenWeighting`"),
        (SelectionPlan, "strata", 3, "`selection.strata`: expected a `Strata`, got 3"),
        (BatchPlan, "micro_batch_size", 4.0, "`batches.micro_batch_size` must be a whole number, got 4.0"),
        (BatchPlan, "eval_batch_size", True, "`batches.eval_batch_size` must be a whole number, got True"),
        (FormsPlan, "sources", Given(), "`forms.sources`: expected a list of `FormSource`"),
        (FormsPlan, "from_paraphrases", "1", "`forms.from_paraphrases` must be a whole number, got '1'"),
        (EvaluationPlan, "probes", "choice", "expected a list of `str`, got 'choice'. Write it as in `['choice']`."),
        (EvaluationPlan, "num_choices", 2.5, "`evaluation.num_choices` must be a whole number, got 2.5"),
        (
            KnowledgeDataModule,
            "batches",
            {"micro_batch_size": 4},
            "`batches`: expected a `BatchPlan`, got {'micro_batch_size': 4}. "
            "Write it as in `BatchPlan(micro_batch_size=4)`.",
        ),
        (KnowledgeDataModule, "encoding", {}, "`encoding`: expected an `EncodingPlan`, got {}"),
        (KnowledgeDataModule, "forms", [Given()], "`forms`: expected a `FormsPlan`"),
        (KnowledgeDataModule, "selection", [KnownFilter()], "`selection`: expected a `SelectionPlan`"),
        (KnowledgeDataModule, "evaluation", None, "`evaluation`: expected an `EvaluationPlan`, got None"),
        (
            KnowledgeDataModule,
            "prompts",
            "The capital of Aro is",
            "`prompts`: expected a list of `str`, got 'The capital of Aro is'. "
            "Write it as in `['The capital of Aro is']`.",
        ),
        (KnowledgeDataModule, "seed", "0", "`seed` must be a whole number from 0 to 4294967295, got '0'"),
        (
            SemanticPeftModule,
            "peft_config",
            {"r": 8},
            "`peft_config`: expected a `PeftConfig`, got {'r': 8}. Write it as in `LoraConfig(r=8)`.",
        ),
        (
            SemanticPeftModule,
            "peft_config",
            LoraConfig,
            "got the class `LoraConfig`. Write it as in `LoraConfig(...)`.",
        ),
        (SemanticPeftModule, "retain", OwnSamples(), "`retain`: expected a list of `HeldStill`"),
        (SemanticPeftModule, "gate", True, "`gate`: expected a `SubjectGate`, got True"),
        (SemanticPeftModule, "optimizer", torch.optim.AdamW([torch.zeros(1)]), "`optimizer`: "),
    ],
)
def test_another_type_is_refused(taker, name, value, said):
    with pytest.raises(InputError) as refused:
        taker(**{name: value})
    assert said in str(refused.value)


def test_what_is_right_is_taken():
    plan = SelectionPlan(Surprisal(), (Surprisal(),), [KnownFilter()], Proximity(), None, Strata(), 1)
    KnowledgeDataModule(forms=FormsPlan([Given()]), selection=plan, prompts=["The capital of Aro is"])
    SemanticPeftModule(peft_config=LoraConfig(r=2), retain=(OwnSamples(),))
