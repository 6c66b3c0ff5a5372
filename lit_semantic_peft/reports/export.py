"""From a run folder to a folder for others to load."""

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from lit_semantic_peft.errors import InputError
from lit_semantic_peft.files import atomic_folder
from lit_semantic_peft.models import BaseModel, export_merged, load_adapter
from lit_semantic_peft.models.export import GATE_FILE, base_of, export_as_lora, quantized_dtype_of
from lit_semantic_peft.models.gated import read_gate
from lit_semantic_peft.models.saved_adapter import read_adapter
from lit_semantic_peft.reports.run_folder import RunFolder

logger = logging.getLogger(__name__)


def export_run(
    run: str | Path,
    output: str | Path,
    *,
    merge: bool = False,
    as_lora: bool = False,
    best: bool = False,
    base_model: str | None = None,
) -> None:
    """Writes a run's adapter, the same as plain LoRA, or the merged model to a new folder.

    Args:
        run: A run folder, or a folder with an exported adapter.
        output: The folder to write.
        merge: Whether base weights and adapter become one plain model, in float32. Where the base was quantised for
            training, its weights are the numbers that the quantised ones stand for, to which the adapter was fitted.
        as_lora: Whether the adapter is written as plain LoRA, as tools load it without this package.
        best: The adapter of the best epoch instead of the last.
        base_model: Where the base model is, for `merge`; by default the name that the adapter gives.

    Raises:
        InputError: If there is no adapter, a damaged one or one that its base model does not take wholly, `output`
            exists or is inside the adapter's folder, a file of which cannot be copied, the adapter cannot be merged or
            is no LoRA, both are asked for, a base model is given that nothing is merged into, or the best adapter is
            asked of a folder that is one.
    """
    if base_model and not merge:
        raise InputError("`base_model` is only needed with `merge` (`--merge`): an adapter is copied as it is.")
    if merge and as_lora:
        raise InputError("`merge` (`--merge`) and `as_lora` (`--as_lora`) write different things; choose one.")
    run, output = Path(run), Path(output)
    is_adapter = (run / "adapter_config.json").is_file()
    if best and is_adapter:
        raise InputError(f"`best` (`--best`) chooses between a run's adapters, but {run} is an adapter itself.")
    paths = RunFolder(run).paths
    adapter = run if is_adapter else paths.adapter_best if best else paths.adapter
    if not (adapter / "adapter_config.json").is_file():
        raise InputError(f"{run} holds no adapter ({adapter / 'adapter_config.json'} is missing). Did the run end?")
    if os.path.lexists(output):
        raise InputError(f"{output} exists already; name another folder or delete it.")
    if output.resolve().is_relative_to(adapter.resolve()):
        raise InputError(f"{output} is inside {adapter}, which would be copied into itself; name a folder outside it.")
    _refuse_links_outwards(adapter)
    if not merge:
        _check_against_base(adapter)
        if as_lora:
            export_as_lora(adapter, output)
            return
        with atomic_folder(output) as temporary:
            _copy(adapter, temporary)
        return
    if read_gate(adapter) is not None:
        raise InputError(
            f"{adapter} has a gate, which the merged weights would not have: they would act on every prompt. Export it "
            f"without --merge, or copy the adapter and delete {GATE_FILE} from the copy."
        )
    base = base_of_adapter(adapter, base_model)
    if dtype := quantized_dtype_of(adapter):
        base = replace(base, dtype=dtype)  # type: ignore[arg-type]
    model = load_adapter(base.load_dequantized(), adapter, base.source)
    export_merged(model, base.load_tokenizer(), output)


def _copy(adapter: Path, output: Path) -> None:
    try:
        shutil.copytree(adapter, output, dirs_exist_ok=True)
    except shutil.Error as error:  # a list of what could not be copied and why
        source, _, reason = error.args[0][0]
        if "No space left" in str(reason):
            raise
        raise InputError(f"{source} cannot be copied: {reason}. Move it out of the adapter's folder.") from error


def _check_against_base(adapter: Path) -> None:
    """Refuses an adapter that is damaged or, where its base model is at hand, not applied to it wholly."""
    read_adapter(adapter)
    try:
        base = base_of_adapter(adapter)
        source = base.source
    except InputError as error:
        logger.warning("The adapter is not compared with its base model, which was not found: %s", error)
        return
    load_adapter(base.load(), adapter, source)


def _refuse_links_outwards(adapter: Path) -> None:
    """Refuses a folder whose copy would hold what is outside it."""
    for path in adapter.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(adapter.resolve()):
            raise InputError(
                f"{path} is a link to {path.resolve()}, outside the adapter's folder, and is not followed. Copy the "
                "folder with `cp -L` first, if that file belongs to the adapter."
            )


def base_of_adapter(adapter: Path, base_model: str | None = None) -> BaseModel:
    """The base model that an exported adapter belongs to.

    Args:
        adapter: Folder of the adapter.
        base_model: Overrides the adapter's own name and revision for it.

    Returns:
        In float32.

    Raises:
        InputError: If the adapter does not name it.
    """
    if base_model:
        return BaseModel(base_model)
    name, revision, _ = base_of(adapter)
    if not name:
        raise InputError(f"{adapter} does not name the base model it was trained on. Name it by `--base_model`.")
    return BaseModel(name, revision)
