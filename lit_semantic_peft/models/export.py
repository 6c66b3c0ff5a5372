"""Folders for others to load: an adapter as PEFT reads it, or one plain model with the adapter merged in."""

import json
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import atomic_folder, os_reason, write_json, write_text
from lit_semantic_peft.models.base_files import BaseModelSource
from lit_semantic_peft.models.modes import modes_restored
from lit_semantic_peft.models.peft_traits import peft_type_name, traits_of

BASE_FILE = "lit_semantic_peft.json"
"""Beside an exported adapter: which base model it was trained on, as the user named it, and its fingerprint."""


def export_adapter(model: PeftModel, folder: str | Path, base: BaseModelSource, about: str = "") -> None:
    """Writes an adapter as the standard PEFT folder that peft, transformers and vLLM load. Whole or not at all.

    Args:
        model: The model with its adapter.
        folder: The folder to write; an adapter that this function wrote is replaced.
        base: Named in `adapter_config.json`, with its commit on the Hub, and in the model card.
        about: Markdown paragraph for the model card.
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
        write_json(temporary / BASE_FILE, {"base_model": base.name, "base_fingerprint": base.fingerprint})
        write_text(temporary / "README.md", _model_card(base, peft_type_name(model), about))


def base_of(folder: str | Path) -> tuple[str | None, str | None, str | None]:
    """Name, revision and fingerprint of the base model that an exported adapter was trained on.

    Args:
        folder: The adapter's folder.

    Returns:
        The name as the user gave it, else as PEFT wrote it; the commit on the Hub, None where it is not from there; the
        fingerprint, None where another tool wrote the folder.

    Raises:
        InputError: If the configuration of the adapter cannot be read.
    """
    own = Path(folder) / BASE_FILE
    standard = _json_object(Path(folder) / "adapter_config.json")
    if "peft_type" not in standard:
        raise InputError(f"{Path(folder) / 'adapter_config.json'} names no `peft_type`, so it is no adapter of PEFT.")
    if own.is_file():
        about = _json_object(own)
        return about["base_model"], standard.get("revision"), about["base_fingerprint"]
    return standard.get("base_model_name_or_path"), standard.get("revision"), None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{path} cannot be read: {reason}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def export_merged(model: PeftModel, tokenizer: Any, folder: str | Path) -> None:
    """Adds the adapter to the base weights and writes one plain model with its tokenizer.

    Args:
        model: The model with its adapter; consumed.
        tokenizer: Saved beside the model.
        folder: The folder to write; must not exist.

    Raises:
        InputError: If this kind of adapter cannot be merged (prompt and prefix tuning, `lora_bias` where the base has
            no bias), or adapts the embedding or the output projection of a model that ties them, or if the base is
            stored in a form that cannot be written once it is changed (4 bits).
    """
    if "merge" in traits_of(model).cannot:
        raise InputError(
            f"An adapter of type {peft_type_name(model)} cannot be merged into the base weights; export it without "
            "--merge"
        )
    base = model.get_base_model()
    tied = (base.get_input_embeddings(), base.get_output_embeddings())
    if base.config.tie_word_embeddings and any(isinstance(layer, BaseTunerLayer) for layer in tied):
        raise InputError(
            "The adapter cannot be merged: it changes the embedding or the output projection, which are one matrix in "
            "this model, so that the other would change with it. Export it without --merge."
        )
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError) as error:  # each kind of adapter has its own for what it cannot do
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")
        raise _cannot_be_merged(reason) from error
    try:
        with atomic_folder(folder) as temporary:
            merged.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    except NotImplementedError as error:
        raise _cannot_be_merged("transformers cannot write the quantised base once it is changed") from error


def _model_card(base: BaseModelSource, peft_type: str, about: str) -> str:
    lines = [
        "---",
        f"base_model: {base.public_name}",
        "library_name: peft",
        "tags: [lit-semantic-peft, knowledge]",
        "---",
        "",
        f"# {peft_type} adapter for {base.public_name}",
        "",
        "Trained by lit-semantic-peft to know a set of facts.",
    ]
    return "\n".join([*lines, *(["", about] if about else []), *(["", base.note] if base.note else [])]) + "\n"


def _cannot_be_merged(reason: str) -> InputError:
    return InputError(f"The adapter cannot be merged into the base weights: {reason}. Export it without --merge.")
