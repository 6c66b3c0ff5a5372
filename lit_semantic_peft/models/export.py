"""Folders for others to load: an adapter as PEFT reads it, or one plain model with the adapter merged in."""

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from lit_semantic_peft.adapters import SubjectTable
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import atomic_folder, write_json, write_text
from lit_semantic_peft.models.base_files import BaseModelSource, first_line, quiet_loading
from lit_semantic_peft.models.modes import modes_restored
from lit_semantic_peft.models.packaged import PACKAGED_MODELS
from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of
from lit_semantic_peft.models.saved_adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter, read_json_object

BASE_FILE = "lit_semantic_peft.json"
"""Beside an exported adapter: which base model it was trained on, as the user named it, and its fingerprint."""


GATE_FILE = "subject_gate.json"
"""Beside an exported adapter that is gated: the names that open its gate."""

_GATED = (
    "It was made for a gate, which plain peft does not have: the adapter acts only on prompts that name what was "
    f"taught ({GATE_FILE}). Load it by `lsp.load_gated(base, folder)`, `import lit_semantic_peft as lsp`; without, it "
    "acts on every prompt."
)

_LEAST_TOLERANCE, _TOLERANCE_IN_EPS = 1e-4, 32
"""How far merged logits may be off, relative to their norm: rounding of LoRA merged into the 30 layers of SmolLM2-135M
makes 15 machine epsilons in float32 and 6 in bfloat16; a forgotten layer makes 10⁻³."""

_PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Yesterday she wrote a long letter to her brother, because",
)


def export_adapter(
    model: PeftModel, folder: str | Path, base: BaseModelSource, about: str = "", gate: SubjectTable | None = None
) -> None:
    """Writes an adapter as the standard PEFT folder that peft, transformers and vLLM load. Whole or not at all.

    Args:
        model: The model with its adapter.
        folder: The folder to write; an adapter that this function wrote is replaced.
        base: Named in `adapter_config.json`, with its commit on the Hub, and in the model card.
        about: Markdown paragraph for the model card.
        gate: The names that open the adapter's gate, written beside it; None where it has no gate.
    """
    folder = Path(folder)
    with atomic_folder(folder, BASE_FILE) as temporary:
        peft_config = model.peft_config[model.active_adapter]
        previous = peft_config.base_model_name_or_path, peft_config.revision
        peft_config.base_model_name_or_path, peft_config.revision = base.public_name, base.revision
        try:
            with modes_restored(model):
                model.eval()  # p-tuning's encoder makes the tokens that are saved, and may have dropout
                # PEFT would ask the Hub whether the vocabulary was resized; ours never is.
                model.save_pretrained(temporary, save_embedding_layers=False)
        finally:
            peft_config.base_model_name_or_path, peft_config.revision = previous
        about_base = {"base_model": base.name, "base_fingerprint": base.fingerprint, "base_dtype": base.dtype}
        write_json(temporary / BASE_FILE, {name: value for name, value in about_base.items() if value is not None})
        if gate is not None:
            write_json(temporary / GATE_FILE, gate.to_json())
        about = "\n\n".join(filter(None, [about, "" if gate is None else _GATED]))
        use = "" if gate is not None else _how_to_load(base, model)
        write_text(temporary / "README.md", _model_card(base, peft_type_name(model), about, use))


def export_as_lora(adapter: str | Path, folder: str | Path) -> None:
    """Writes an exported adapter as the plain LoRA with the same update, which tools load without this package.

    Args:
        adapter: The folder of an adapter whose `PeftTraits` have `as_lora`.
        folder: The folder to write; must not exist.

    Raises:
        InputError: If the adapter is damaged, or its update is not that of a plain LoRA. Nothing is written then.
    """
    saved = read_adapter(adapter)
    convert = traits_of(saved.config).as_lora
    if convert is None:
        raise InputError(
            f"An adapter of type {peft_type_name(saved.config)} has no plain LoRA with the same update; export it "
            "without --as_lora."
        )
    config, tensors = convert(saved.config, saved.tensors)
    with atomic_folder(folder) as temporary:
        config.save_pretrained(temporary)
        save_file({name: one.contiguous() for name, one in tensors.items()}, temporary / WEIGHTS_FILE, {"format": "pt"})
        for name in (BASE_FILE, GATE_FILE, "README.md"):
            if (saved.folder / name).is_file():
                shutil.copy(saved.folder / name, temporary / name)


def base_of(folder: str | Path) -> tuple[str | None, str | None, str | None]:
    """Name, revision and fingerprint of the base model that an exported adapter was trained on.

    Args:
        folder: The adapter's folder.

    Returns:
        The name as the user gave it, else as PEFT wrote it; the commit on the Hub, None where it is not from there; the
        fingerprint, None where another tool wrote the folder.

    Raises:
        InputError: If the configuration of the adapter cannot be read, or one of these is no text.
    """
    own = Path(folder) / BASE_FILE
    standard = read_json_object(Path(folder) / CONFIG_FILE)
    if own.is_file():
        about = read_json_object(own)
        name, fingerprint = _text(own, about, "base_model"), _text(own, about, "base_fingerprint")
    else:
        name, fingerprint = _text(Path(folder) / CONFIG_FILE, standard, "base_model_name_or_path"), None
    return name, _text(Path(folder) / CONFIG_FILE, standard, "revision"), fingerprint


def quantized_dtype_of(folder: str | Path) -> str | None:
    """The type to which the base weights were quantised for an exported adapter; None where they were not.

    Args:
        folder: The adapter's folder.

    Raises:
        InputError: If the file about the base cannot be read.
    """
    own = Path(folder) / BASE_FILE
    return read_json_object(own).get("base_dtype") if own.is_file() else None


def export_merged(model: PeftModel, tokenizer: Any, folder: str | Path) -> None:
    """Adds the adapter to the base weights and writes one plain model with its tokenizer.

    Args:
        model: The model with its adapter; consumed.
        tokenizer: Saved beside the model.
        folder: The folder to write; must not exist.

    Raises:
        InputError: If this kind of adapter cannot be merged (prompt and prefix tuning, `lora_bias` where the base has
            no bias), or adapts the embedding or the output projection of a model that ties them, or if the base is
            stored in a form that cannot be written once it is changed (4 bits), or if the written model answers
            otherwise than base and adapter. Nothing is written then.
    """
    if reason := traits_of(model).cannot.get("merge"):
        raise InputError(
            f"An adapter of type {peft_type_name(model)} cannot be merged into the base weights: it {reason}. "
            "Export it without --merge."
        )
    base = model.get_base_model()
    tied = (base.get_input_embeddings(), base.get_output_embeddings())
    if getattr(base.config, "tie_word_embeddings", False) and any(isinstance(layer, BaseTunerLayer) for layer in tied):
        raise InputError(
            "The adapter cannot be merged: it changes the embedding or the output projection, which are one matrix in "
            "this model, so that the other would change with it. Export it without --merge."
        )
    prompts = _prompts(tokenizer)
    expected = _logits(model, prompts)
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except Exception as error:  # each kind of adapter has its own for what it cannot do
        raise _cannot_be_merged((first_line(error) or type(error).__name__).rstrip(". ")) from error
    try:
        with atomic_folder(folder) as temporary:
            merged.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            dtype = merged.dtype
            merged.to("meta")  # its memory is needed for what was written
            with quiet_loading():
                written = type(merged).from_pretrained(temporary, dtype=dtype)
            _require_same_answers(expected, _logits(written, prompts), dtype)
    except NotImplementedError as error:
        raise _cannot_be_merged("transformers cannot write the quantised base once it is changed") from error


def _text(path: Path, found: dict[str, Any], name: str) -> str | None:
    value = found.get(name)
    if not isinstance(value, str | None):
        raise InputError(f"{path}: `{name}` must be a text, got {value!r}")
    return value


def _prompts(tokenizer: Any) -> list[Tensor]:
    return [torch.tensor([tokenizer(text)["input_ids"]]) for text in _PROMPTS]


@torch.no_grad()
def _logits(model: nn.Module, prompts: list[Tensor]) -> Tensor:
    """The logits of each prompt's last token, float64 `(prompts, V)`, on the CPU."""
    with modes_restored(model):
        model.eval()
        device = next(model.parameters()).device
        on_device = [ids.to(device) for ids in prompts]
        rows = [model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits for ids in on_device]
    return torch.stack([logits[0, -1].double().cpu() for logits in rows])


def _require_same_answers(expected: Tensor, found: Tensor, dtype: torch.dtype) -> None:
    difference = float((found - expected).norm() / expected.norm())
    tolerance = max(_LEAST_TOLERANCE, _TOLERANCE_IN_EPS * torch.finfo(dtype).eps)
    if not difference <= tolerance:  # also where it is NaN
        raise _cannot_be_merged(
            f"its logits on {len(expected)} prompts would be off by {difference:.2g} of their norm, where rounding in "
            f"{str(dtype).removeprefix('torch.')} explains {tolerance:.2g}"
        )


def _how_to_load(base: BaseModelSource, model: PeftModel) -> str:
    """The lines of Python that load an adapter on the weights that it was trained on."""
    loaded = f"AutoModelForCausalLM.from_pretrained({base.public_name!r})"
    imports = ["from peft import PeftModel", "from transformers import AutoModelForCausalLM"]
    name = base.name if base.name in PACKAGED_MODELS else base.public_name
    if base.note:  # other weights than those of that name
        dtype = "" if base.dtype is None else f", dtype={base.dtype!r}"
        loaded, imports = f"BaseModel({name!r}{dtype}).load()", ["from lit_semantic_peft import BaseModel", imports[0]]
    if type(model.active_peft_config).__module__.startswith("lit_semantic_peft."):
        imports = ["import lit_semantic_peft.adapters  # a method of this package, not of peft", *imports]
    lines = [*imports, "", f'model = PeftModel.from_pretrained({loaded}, "FOLDER")']
    return "\n".join(["```python", *lines, "```"])


def _model_card(base: BaseModelSource, peft_type: str, about: str, use: str) -> str:
    fields = {
        "base_model": base.public_name,
        "library_name": "peft",
        "tags": ["lit-semantic-peft", "knowledge"],
    }
    lines = [
        f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---",
        "",
        f"# {peft_type} adapter for {' '.join(base.public_name.split())}",
        "",
        "Trained by lit-semantic-peft to know a set of facts.",
    ]
    return "\n".join([*lines, *(line for part in (about, base.note, use) if part for line in ("", part))]) + "\n"


def _cannot_be_merged(reason: str) -> InputError:
    return InputError(f"The adapter cannot be merged into the base weights: {reason}. Export it without --merge.")
