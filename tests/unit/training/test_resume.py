"""What goes on after a checkpoint, beside what `cli/test_resume.py` holds to the last bit for LoRA."""

from lit_semantic_peft.callbacks import AdapterCheckpoint
from peft import AdaLoraConfig

from fixtures.training import WEIGHTED, fit, is_same_adapter


def test_adalora_goes_on_with_its_budget(tiny_model, facts_file):
    """3 steps an epoch; ranks are taken away from step 3 on and settled at step 7: cut off before and behind that."""

    def run(folder, ckpt_path=None):
        config = AdaLoraConfig(
            init_r=6, target_r=2, tinit=2, tfinal=5, deltaT=1, total_step=12, target_modules=["q_proj", "v_proj"]
        )
        trainer = {"max_epochs": 4, "enable_checkpointing": True, "default_root_dir": folder}
        callbacks = [AdapterCheckpoint(save_top_k=-1)]
        return fit(
            tiny_model,
            facts_file,
            data=WEIGHTED,
            model={"peft_config": config},
            trainer=trainer,
            callbacks=callbacks,
            ckpt_path=ckpt_path,
        )[0]

    whole = run("whole")
    for epoch in (0, 2):
        resumed = run("resumed", f"whole/checkpoints/epoch00{epoch}.ckpt")
        assert is_same_adapter(whole, resumed), epoch
        left, right = (one.model.peft_config["default"].rank_pattern for one in (whole, resumed))
        assert left == right
        assert not all(map(all, left.values()))
