"""The gradient matrix of facts for a loaded model, without a data module and without a trainer."""

import numpy as np
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lit_semantic_peft.arguments import require_instance
from lit_semantic_peft.data.encoders import encoder_of_loaded
from lit_semantic_peft.data.plans import EncodingPlan
from lit_semantic_peft.data.scoring import require_loaded
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.facts import DEFAULT_DATASET_SPLIT, GivenFacts, given_facts
from lit_semantic_peft.interference import InterferenceMatrix, gradient_matrix
from lit_semantic_peft.tokens import collate

_DEFAULT_ENCODING = EncodingPlan()


def interference_matrix(
    model: PeftModel,
    facts: GivenFacts,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_facts: int | None = None,
    seed: int = 0,
    dataset_split: str = DEFAULT_DATASET_SPLIT,
    encoding: EncodingPlan = _DEFAULT_ENCODING,
    batch_size: int = 16,
) -> InterferenceMatrix:
    """Inner products K_ij = ⟨g_i, g_j⟩ of the facts' gradients, g_i = ∂ℓ_i/∂θ, θ the adapter's parameters.

    Above 0 a small step on fact j helps fact i, below 0 it hurts. The model is not changed. Cost: about one forward and
    one backward pass of the facts; 4 bytes of memory for each fact and trained parameter, see `gradient_matrix`.

    Args:
        model: Any model of `peft`, on the device to run on; of a `SemanticPeftModule` its `model`.
        facts: A built-in set, a file, a folder or a Hub data set, as `read_facts` takes it; what it returned; or facts.
        tokenizer: The model's.
        num_facts: How many of the facts to take, chosen by `seed`; None for all.
        seed: Of that choice.
        dataset_split: Which split of a `datasets` folder or Hub data set to read.
        encoding: How facts become tokens.
        batch_size: Facts per forward pass.

    Returns:
        The matrix, float32 `(k, k)`, in the order of the facts.

    Raises:
        InputError: If an argument cannot be used, two facts share an id, or the model trains nothing.
    """
    facts = given_facts(facts, num_facts=num_facts, seed=seed, dataset_split=dataset_split)
    require_instance("encoding", encoding, EncodingPlan, "EncodingPlan('chat')")
    require_loaded(model, "a loaded model of peft")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(
            "`model` trains nothing, so that facts have no gradients. Load the adapter with `is_trainable=True`."
        )
    encoder = encoder_of_loaded(model, tokenizer, encoding)
    encoded = encoder.encode_facts(facts)
    batches = [
        collate(
            encoded[start : start + batch_size], range(start, min(start + batch_size, len(encoded))), encoder.pad_id
        )
        for start in range(0, len(encoded), batch_size)
    ]
    dot = gradient_matrix(model, batches).numpy()
    return InterferenceMatrix(dot, np.arange(len(facts)), fact_id=tuple(fact.id for fact in facts))
