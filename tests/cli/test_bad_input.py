"""Bad input: one clear message, exit status 2, no traceback, nothing half-written."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.cli.trainer import KnowledgeTrainer
from lit_semantic_peft.data.moved import MOVED
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.models import BaseModelSource, attach_adapter, export_adapter
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from fixtures.training import build

SMALL = [
    "--trainer.max_epochs=2",
    "--recipe=plain",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.default_root_dir=runs/bad",
]
ONLY_FACTS = ["--data.evaluation.probes=[]", "--data.evaluation.retention=false"]
GOOD = {"id": "a", "prompt": "The capital of Aro is", "target": "Lund"}


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-semantic-peft"])


@pytest.fixture
def refused(tiny_model, facts_file, capsys):
    """Runs `fit` and returns what it said; checks status, traceback and that nothing untrained was left behind."""

    def run(*arguments: str, facts: str | None = None, command: str = "fit", has_trained: bool = False) -> str:
        status = main(
            [command, f"--model.base_model={tiny_model}", f"--data.facts={facts or facts_file}", *SMALL, *arguments]
        )
        output = capsys.readouterr()
        assert status == 2
        assert "Traceback" not in output.err
        assert Path("runs/bad").exists() == has_trained
        return output.err

    return run


def write(name: str, *lines: object) -> str:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    Path(name).write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return name


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([GOOD, {"target": "x"}], ["bad.jsonl", "line 2", "`prompt`"]),
        ([GOOD, {"prompt": "x"}], ["bad.jsonl", "line 2", "`target`"]),
        ([{**GOOD, "target": " "}], ["line 1", "`target`", "empty"]),
        ([{**GOOD, "target": 7}], ["line 1", "`target`", "expected"]),
        ([GOOD, {**GOOD, "prompt": "Other", "paraphrases": "no list"}], ["line 2", "`paraphrases`"]),
        ([GOOD] + [{"prompt": f"p{n}", "target": "t"} for n in range(5)] + ['{"prompt": "x", '], ["line 7", "JSON"]),
        ([GOOD, {**GOOD, "prompt": "Another prompt is"}], ["line 1", "line 2", "`id`", "a"]),
        ([GOOD, {**GOOD, "id": "b", "target": "Paris"}], ["line 1", "line 2", "contradict", "Lund", "Paris"]),
        ([{**GOOD, "split": "sometimes"}], ["line 1", "`split`", "inject"]),
        ([], ["bad.jsonl", "without records"]),
    ],
)
def test_bad_facts(refused, lines, said):
    message = refused(facts=write("bad.jsonl", *lines)).lower()
    for part in said:
        assert part.lower() in message, message


def test_csv_without_header(refused):
    Path("bad.csv").write_text("The capital of Aro is,Lund\n", encoding="utf-8")
    message = refused(facts="bad.csv")
    assert "bad.csv" in message
    assert "header" in message
    assert "`prompt`" in message


def test_target_that_is_no_token(tiny_model, capsys):
    # A normaliser that removes a character makes a target of it vanish.
    from tokenizers import normalizers

    from fixtures.models import byte_level_bpe, tiny_llama

    tokenizer = byte_level_bpe()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    folder = Path("vanishing")
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = write("bad.jsonl", GOOD, {"id": "b", "prompt": "The sign is", "target": "~", "joiner": ""})
    assert main(["fit", f"--model.base_model={folder}", f"--data.facts={facts}", *SMALL]) == 2
    message = capsys.readouterr().err
    assert "bad.jsonl:2" in message
    assert "'b'" in message
    assert "no token" in message
    assert not Path("runs/bad").exists()


def test_a_fact_longer_than_max_length_is_named(refused):
    message = refused("--data.encoding.max_length=6")
    assert "`max_length` is 6" in message
    assert "facts.jsonl:1" in message


def test_a_filter_that_leaves_nothing(refused):
    message = refused(
        "--data.selection.filters="
        "[{class_path: lit_semantic_peft.semantics.BandFilter, init_args: {min_distance: 1.99}}]"
    )
    assert "leave no fact" in message
    assert "too_near" in message


def test_a_checkpoint_monitor_that_nobody_logs(refused):
    arguments = ["--checkpoint.monitor=val/nothing", "--data.batches.micro_batch_size=4", "--interference.num_facts=0"]
    message = refused(*arguments, has_trained=True)
    assert "`monitor` 'val/nothing' was not logged; there are:" in message
    assert "val/nll" in message


SCHEDULED = (
    "--data.selection.weighting={class_path: lit_semantic_peft.semantics.Scheduled, init_args: {"
    "first: {class_path: lit_semantic_peft.semantics.Proximity}, "
    "last: {class_path: lit_semantic_peft.semantics.Remoteness}}}"
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trainer.overfit_batches=1"], "`trainer.overfit_batches` cannot be used"),
        (["--trainer.enable_checkpointing=false"], "`trainer.enable_checkpointing: false`"),
        (["--trainer.barebones=true"], "`trainer.barebones: true` cannot be used on the command line"),
        (
            ["--trainer.callbacks=[{class_path: lit_semantic_peft.callbacks.InterferenceMonitor}]"],
            "Its settings are the section `interference`",
        ),
        ([SCHEDULED, "--trainer.limit_train_batches=0.5"], "`weighting` Scheduled needs whole epochs"),
        (
            [SCHEDULED, "--trainer.max_epochs=-1", "--model.warmup_ratio=0"],
            "`weighting` Scheduled moves from the start",
        ),
    ],
)
def test_what_cannot_be_combined_is_said(refused, arguments, said):
    assert said in refused(*arguments)


def test_a_logger_whose_package_is_missing(refused, monkeypatch):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning.fabric.loggers.tensorboard.{name}", False)
    message = refused("--trainer.logger={class_path: TensorBoardLogger, init_args: {save_dir: runs/bad}}")
    assert "Neither `tensorboard` nor `tensorboardX` is available" in message


def test_a_base_model_of_the_data_is_that_of_the_model(refused):
    Path("two.yaml").write_text("data: {base_model: someone/else}\n", encoding="utf-8")
    assert "`data.base_model` is now `model.base_model` alone" in refused("--config=two.yaml")
    assert "`data.base_model` is now `model.base_model` alone" in refused("--data.base_model=x")
    text = "--config={data: {batches: {micro_batch_size: 0}}}"  # read as text
    assert "`batches.micro_batch_size` must be at least 1" in refused(text)


@pytest.mark.parametrize("old", MOVED)
def test_an_old_key_names_the_new_one(refused, old):
    section, name = old.split(".")
    Path("old.yaml").write_text(f"{section}: {{{name}: null}}\n", encoding="utf-8")
    said = f"`{old}` is now `{MOVED[old]}`"
    for argument in (f"--{old}=1", f"--{old}.init_args.x=1", "--config=old.yaml", f"--{section}={{{name}: null}}"):
        assert said in refused(argument), argument


def test_all_old_keys_are_named_at_once(refused):
    Path("old.yaml").write_text(
        "data: {template: plain, facts: x, base_model: y}\nmodel: {dtype: z}\n", encoding="utf-8"
    )
    by_file, by_option = refused("--config=old.yaml"), refused("--data.template=plain", "--model.dtype=z")
    for said in (by_file, by_option):
        assert "`data.template` is now `data.encoding.template`, `model.dtype` is now `model.base_model.dtype`" in said
    assert "`data.base_model` is now `model.base_model` alone" in by_file


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("--model.warmup_ratio=x", None),
        ("--trainer.max_epochs=x", None),
        ("--data.selection.weighting=Focl", "lit_semantic_peft.semantics.Focal"),
        ("--data.selection.distance={class_path: lit_semantic_peft.semantics.Surprisl}", "semantics.Surprisal"),
        ("--model.peft_config=peft.LoraConfg", "peft.LoraConfig"),
    ],
)
def test_a_bad_value_is_not_answered_with_its_own_key(refused, argument, nearest):
    message = refused(argument)
    assert argument.split("=")[0].strip("-") in message
    if nearest is None:
        assert "Did you mean" not in message
    else:
        assert f"{nearest}`?" in message.partition("Did you mean `")[2]


def test_settings_of_the_base_model(refused):
    Path("named.yaml").write_text("model: {base_model: {name: nobody/nothing, dtype: int7}}\n", encoding="utf-8")
    message = refused("--config=named.yaml")
    assert "model.base_model.dtype" in message
    assert "int7" in message
    assert "Did you mean `model.base_model.dtype`" in refused("--model.base_model.dtpe=bfloat16")
    Path("typo.yaml").write_text("model: {base_model: {nam: x}}\n", encoding="utf-8")
    assert "Did you mean `model.base_model.name`" in refused("--config=typo.yaml")


def test_an_adapter_that_has_changed_the_base_model_is_not_compared_with_it(tiny_model, facts_file, capsys):
    model = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules=["q_proj"]))
    export_adapter(model, Path("adapter"), BaseModelSource("small", Path("small"), "small", "f" * 32))
    config = json.loads(Path("adapter/adapter_config.json").read_text(encoding="utf-8"))
    Path("adapter/adapter_config.json").write_text(json.dumps({**config, "bias": "all"}), encoding="utf-8")
    of_adapter = [f"--model.base_model={tiny_model}", "--model.adapter=adapter", *SMALL]
    assert main(["test", *of_adapter, f"--data.facts={facts_file}"]) == 2
    assert "made with `bias: all`, which changes the base model" in capsys.readouterr().err
    assert main(["predict", *of_adapter, "--data.prompts=[The capital of Aro is]"]) == 0


def test_results_of_other_facts_are_not_overwritten(tiny_model, facts_file, shared_cache, capsys):
    model = f"--model.base_model={tiny_model}"
    assert main(["fit", model, f"--data.facts={facts_file}", *SMALL, *ONLY_FACTS]) == 0
    before = Path("runs/bad/facts.parquet").read_bytes()
    other = write("other.jsonl", GOOD)
    capsys.readouterr()
    test = ["test", model, f"--data.facts={other}", "--ckpt_path=runs/bad/checkpoints/last.ckpt"]
    assert main([*test, *SMALL, *ONLY_FACTS]) == 2
    assert "The run folder runs/bad holds the results of other facts" in capsys.readouterr().err
    assert Path("runs/bad/facts.parquet").read_bytes() == before
    assert main([*test, *SMALL, *ONLY_FACTS, "--trainer.default_root_dir=runs/other"]) == 0
    assert Path("runs/other/facts.parquet").is_file()


def test_a_checkpoint_of_another_folder_goes_on_in_a_new_one_only(tiny_model, facts_file, shared_cache, capsys):
    settings = [f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", *SMALL, *ONLY_FACTS]
    assert main(["fit", *settings, "--trainer.default_root_dir=runs/a"]) == 0
    shutil.copytree("runs/a", "runs/b")
    capsys.readouterr()
    on = ["fit", *settings, "--trainer.max_epochs=3", "--ckpt_path=runs/a/checkpoints/last.ckpt"]
    before = Path("runs/b/config.yaml").read_bytes()
    assert main([*on, "--trainer.default_root_dir=runs/b"]) == 2
    assert "The run folder runs/b exists already" in capsys.readouterr().err
    assert Path("runs/b/config.yaml").read_bytes() == before
    for name in ("new", "a"):
        assert main([*on, f"--trainer.default_root_dir=runs/{name}"]) == 0


@pytest.mark.parametrize("keep", ["0", "1.5", "-0.1"])
def test_keep_outside_its_range(refused, keep):
    filters = f"[{{class_path: lit_semantic_peft.semantics.MeanVarianceFilter, init_args: {{keep: {keep}}}}}]"
    message = refused(f"--data.selection.filters={filters}")
    assert "`keep`" in message
    assert keep in message


def test_target_modules_that_match_nothing_say_what_would(refused):
    config = "{class_path: peft.LoraConfig, init_args: {target_modules: [query]}}"
    message = refused(f"--model.peft_config={config}")
    assert "`target_modules`" in message
    assert "q_proj" in message
    assert "all-linear" in message


def test_nan_loss(refused):
    """Before its first checkpoint: what was logged says how the training went wrong."""
    optimizer = ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e30"]
    message = refused(*optimizer, "--trainer.max_epochs=6", "--checkpoint.every_n_epochs=100", has_trained=True)
    assert "`train/loss` is" in message
    assert "learning rate" in message
    assert "train/loss" in Path("runs/bad/logs/metrics.csv").read_text(encoding="utf-8")


def test_a_refused_run_leaves_an_existing_folder_as_it_was(tiny_model, facts_file, capsys):
    Path("runs/bad").mkdir(parents=True)
    fit = ["fit", f"--model.base_model={tiny_model}", f"--data.facts={facts_file}", *SMALL, *ONLY_FACTS]
    for _ in range(2):
        assert main([*fit, "--trainer.overfit_batches=1"]) == 2
        assert "`trainer.overfit_batches` cannot be used" in capsys.readouterr().err
        assert not list(Path("runs/bad").iterdir())
    assert main(fit) == 0


def test_foreign_and_truncated_checkpoints(refused):
    import torch

    torch.save({"state_dict": {}}, "foreign.ckpt")
    assert "not written by lit-semantic-peft" in refused("--ckpt_path=foreign.ckpt")
    Path("broken.ckpt").write_bytes(Path("foreign.ckpt").read_bytes()[:100])
    assert "cannot be read" in refused("--ckpt_path=broken.ckpt")


def test_a_checkpoint_of_other_facts_is_refused(tiny_model, facts_file, shared_cache, capsys):
    fit = ["fit", f"--model.base_model={tiny_model}", *SMALL]
    assert main([*fit, f"--data.facts={facts_file}"]) == 0
    other = write("other.jsonl", GOOD)
    capsys.readouterr()
    assert main([*fit, f"--data.facts={other}", "--ckpt_path=last", "--trainer.max_epochs=3"]) == 2
    message = capsys.readouterr().err
    assert "`data.facts`: 12 facts (content " in message
    assert "in the checkpoint, 1 facts (content" in message
    assert Path("runs/bad/adapter").is_dir()  # the earlier run is untouched


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("--data.micro_batchsize=4", "data.batches.micro_batch_size"),
        ("--model.base_modell=x", "model.base_model"),
        ("--interference.number_facts=3", "interference.num_facts"),
    ],
)
def test_unknown_option_names_the_nearest(refused, argument, nearest):
    assert f"Did you mean `{nearest}`" in refused(argument)


def test_unknown_yaml_key_names_the_nearest(refused):
    Path("typo.yaml").write_text("data:\n  micro_batchsize: 4\n", encoding="utf-8")
    message = refused("--config=typo.yaml")
    assert "micro_batchsize" in message
    assert "Did you mean `data.batches.micro_batch_size`" in message


def test_test_without_an_adapter(refused):
    assert "needs a trained adapter" in refused(command="test")


def test_predict_with_the_adapter_of_another_model(refused, tiny_model):
    llama = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = attach_adapter(llama, LoraConfig(r=2, target_modules=["q_proj"]))
    export_adapter(model, Path("adapter"), BaseModelSource("small", Path("small"), "small", "f" * 32))
    config = json.loads(Path("adapter/adapter_config.json").read_text(encoding="utf-8"))
    Path("adapter/adapter_config.json").write_text(json.dumps({**config, "r": 4}), encoding="utf-8")  # fits nothing
    message = refused("--model.adapter=adapter", "--data.prompts=[x]", command="predict")
    assert "trained on the base model 'small'" in message
    assert "Use `--model.base_model small`" in message


def test_fit_with_an_exported_adapter(refused, tiny_model):
    model = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules=["q_proj"]))
    export_adapter(model, Path("adapter"), BaseModelSource("small", Path("small"), "small", "f" * 32))
    assert "`model.adapter` 'adapter' is for `test` and `predict`" in refused("--model.adapter=adapter")
    assert not Path("cache").exists()  # no fact was scored


def test_unknown_command(capsys):
    assert main(["fitt"]) == 2
    assert "did you mean 'fit'" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1"])
def test_accumulation_below_one(refused, number):
    assert "accumulate_grad_batches" in refused(f"--trainer.accumulate_grad_batches={number}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--trainer.devices=0"], "0"),
        (["--trainer.accelerator=gpu", "--trainer.devices=64"], "gpu"),
    ],
)
def test_a_number_of_processes_that_there_cannot_be(refused, arguments, said):
    assert said.lower() in refused(*arguments).lower()


def test_torchrun_with_another_number_of_processes(refused, monkeypatch):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "1",
        "GROUP_RANK": "0",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    message = refused("--trainer.devices=3", "--trainer.strategy=ddp")
    assert "devices" in message
    assert "2" in message


@pytest.mark.parametrize("strategy", ["lightning.pytorch.strategies.ModelParallelStrategy", "deepspeed"])
def test_strategies_that_would_change_the_run(refused, strategy):
    assert "strategy" in refused(f"--trainer.strategy={strategy}", "--trainer.devices=1").lower()


def test_score_in_several_processes(tiny_model, facts_file):
    trainer = KnowledgeTrainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    parts = build(tiny_model, facts_file)
    with pytest.raises(InputError, match="`score` runs in one process, but the trainer has 2: set `devices` to 1"):
        trainer.score(parts.module, parts.data)
