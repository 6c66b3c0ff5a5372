"""`inspect` on the command line, and the audit as a guard of `fit`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lit_semantic_peft.__main__ import main
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter
from peft import LoraConfig


@pytest.fixture
def adapter(tiny_model):
    def write(scale):
        base = BaseModel(str(tiny_model))
        model = attach_adapter(base.load(), LoraConfig(r=2, target_modules=["q_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, scale)
        export_adapter(model, "adapter", base.source)
        return "adapter"

    return write


def test_an_adapter_that_does_nothing_has_status_0(adapter, facts_file, capsys):
    assert main(["inspect", adapter(0.0), "--facts", str(facts_file), "--num_builtin", "4"]) == 0
    output = capsys.readouterr().out
    assert "no proof that the adapter is harmless" in " ".join(output.split())
    assert "text_moved" in output
    assert Path("adapter.inspection/inspection.html").is_file()


def test_a_warning_has_status_3(adapter, capsys):
    said = {"must_hold": [{"prompt": "The capital of France is", "answer": "Paris"}]}
    Path("watch.yaml").write_text(yaml.safe_dump(said), encoding="utf-8")
    assert main(["inspect", adapter(3.0), "--watch", "watch.yaml", "--num_builtin", "4", "--output", "out"]) == 3
    assert "The audit warns: text_moved" in capsys.readouterr().out
    kept = json.loads(Path("out/inspection.json").read_text(encoding="utf-8"))
    assert len(kept["watch"]["must_hold"]) == 1


def test_bad_input_has_status_2_and_writes_nothing(adapter, capsys):
    folder = adapter(1.0)
    assert main(["inspect", folder, "--bank", "none", "--weights_only"]) == 2
    assert "`bank` 'none' is no folder" in capsys.readouterr().err
    assert main(["inspect", "nowhere"]) == 2
    assert main(["inspect", folder, "--watch", "none.yaml"]) == 2
    Path("bank").mkdir()
    shutil.copytree(folder, "bank/one")
    assert main(["inspect", folder, "--bank", "bank", "--weights_only"]) == 2
    assert "holds 0 adapters" in capsys.readouterr().err
    assert not Path("adapter.inspection").exists()


def fit(tiny_model, facts_file, rate, **settings):
    audit = {"class_path": "lit_semantic_peft.callbacks.AdapterAudit", "init_args": {"num_builtin": 4, **settings}}
    Path("audit.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [audit]}}), encoding="utf-8")
    return main(
        [
            "fit",
            "--config=audit.yaml",
            "--recipe=plain",
            f"--data.facts={facts_file}",
            f"--model.base_model={tiny_model}",
            "--model.optimizer=torch.optim.AdamW",
            f"--model.optimizer.lr={rate}",
            "--trainer.max_steps=3",
            "--trainer.default_root_dir=runs/one",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.enable_progress_bar=false",
            "--interference.num_facts=2",
            "--data.evaluation.retention=false",
        ]
    )


def test_a_guarded_fit_that_warns_ends_with_status_3_and_everything_written(
    tiny_model, facts_file, shared_cache, capsys
):
    assert fit(tiny_model, facts_file, 1.0) == 3
    assert "The audit warns" in capsys.readouterr().err
    run = Path("runs/one")
    kept = json.loads((run / "inspection" / "inspection.json").read_text(encoding="utf-8"))
    assert kept["verdict"] == "warns"
    assert kept["given"]["num_facts"] == 12
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "## Audit" in card
    assert "The audit warns" in card
    assert (run / "report.html").is_file()  # the evaluation came first


def test_a_quiet_guard_goes_on(tiny_model, facts_file, shared_cache):
    assert fit(tiny_model, facts_file, 1.0, stop=False, facts=False) == 0
    kept = json.loads(Path("runs/one/inspection/inspection.json").read_text(encoding="utf-8"))
    assert (kept["verdict"], kept["given"]) == ("warns", None)


def test_a_guard_needs_an_export():
    import lightning as L
    from lit_semantic_peft.callbacks import AdapterAudit
    from lit_semantic_peft.errors import InputError

    trainer = L.Trainer(callbacks=[AdapterAudit()], logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(InputError, match="audits what `AdapterExport` writes"):
        trainer.callbacks[0].setup(trainer, L.LightningModule(), "fit")
    with pytest.raises(InputError, match="`num_builtin` must be at least 1"):
        AdapterAudit(num_builtin=0)
    with pytest.raises(InputError, match="`bank` 'none' is no folder"):
        AdapterAudit(bank="none")
