"""The audit as a whole: what adapters that do nothing, little and much are found to do."""

import json
import re

import pytest
import torch
from lit_semantic_peft.audit import changes, inspect, judge, measure_neutral, surfaced, write_inspection
from lit_semantic_peft.audit.inspection import adapter_folder, as_watch_list, inspect_loaded, output_folder
from lit_semantic_peft.audit.page import CARD_BEGIN, render_page, with_audit
from lit_semantic_peft.audit.says import FLOOR, neutral_ids
from lit_semantic_peft.data import EncodingPlan
from lit_semantic_peft.data.encoders import encoder_of
from lit_semantic_peft.errors import InputError
from lit_semantic_peft.evaluation import Answer, Comparison, EvaluationPlan, fact_questions
from lit_semantic_peft.facts import Fact
from lit_semantic_peft.models import BaseModel, attach_adapter, export_adapter, load_adapter
from lit_semantic_peft.reports import RunFolder
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

from fixtures.browser import BROWSER, NO_BROWSER, Page


@pytest.fixture
def loaded(make_adapter, tiny_model):
    def load(**settings):
        base = BaseModel(str(tiny_model))
        folder = make_adapter(**settings)
        return load_adapter(base.load(), folder, base.source), encoder_of(base, EncodingPlan()), folder, base

    return load


def test_an_adapter_that_does_nothing_is_found_to_do_nothing(make_adapter, facts_file):
    found = inspect(make_adapter(scale=0.0), facts=facts_file, num_builtin=8)
    assert not found.warns
    assert found.neutral.kl.mean == 0
    assert {gain for _, gain in (*found.neutral.likelier, *found.neutral.gained)} == {0}
    assert (found.builtin.flipped.mean, found.given.flipped.mean, found.given.neighbour_kl.mean) == (0, 0, 0)
    assert found.given.lost_facts == ()
    assert {cell["nll_delta"] for cell in found.given.side_effects} == {0}


def test_a_loud_adapter_is_warned_of_and_everything_is_written(make_adapter, facts_file, tmp_path):
    found = inspect(make_adapter(scale=2.0), facts=facts_file, num_builtin=8)
    assert "text_moved" in {signal.name for signal in found.warnings}
    assert found.builtin.flipped.mean > 0.5
    page = write_inspection(found, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    assert "The audit warns: " in text
    assert re.search(r"<li><code>text_moved</code> is [\d.]+ nats per token, above the limit of 0\.1: how far", text)
    assert "<script" not in text
    assert text.index("The audit warns") < text.index('class="tiles"')  # what it comes to is said first
    assert "`" not in re.sub(r"(?s)<style>.*?</style>", "", text.partition('id="says"')[0])
    assert text.count('<div class="tile">') == sum(signal.value is not None for signal in found.signals) > 2
    kept = json.loads((tmp_path / "out" / "inspection.json").read_text(encoding="utf-8"))
    assert kept["verdict"] == "warns"
    assert kept["signals"][1]["measured"] == "not measured yet"
    assert set(kept["given"]["flipped_by_relation"]) == {"river", "capital"}
    assert (tmp_path / "out" / "plots" / "weights.png").read_bytes()[:4] == b"\x89PNG"
    write_inspection(found, tmp_path / "out")  # its own files are replaced
    page.write_text("mine")
    with pytest.raises(InputError, match=r"did not write it as inspection\.html"):
        write_inspection(found, tmp_path / "out")


def test_weights_alone_have_no_verdict_and_no_empty_section(make_adapter, tmp_path):
    found = inspect(make_adapter(scale=2.0), weights_only=True)
    text = write_inspection(found, tmp_path / "out").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', text) == ["verdict", "rules", "weights"]
    assert re.findall(r'<a href="#(\w+)"', text) == ["verdict", "rules", "weights"]
    assert "No rule could be applied, so there is no verdict." in text
    assert "Only the weights were looked at. All rules but <code>unusual_weights</code> need the base model" in text
    assert "None of" not in text
    assert 'class="empty"' not in text
    kept = json.loads((tmp_path / "out" / "inspection.json").read_text(encoding="utf-8"))
    assert kept["verdict"] == "no rule could be applied"


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_a_phone_reads_the_page_without_scrolling_sideways(make_adapter, facts_file, tmp_path):
    found = inspect(make_adapter(scale=2.0), facts=facts_file, num_builtin=8)
    page_file = write_inspection(found, tmp_path / "out")
    with Page(page_file, tmp_path / "profile", width=390, ready="true") as page:
        assert page.run("document.documentElement.scrollWidth - innerWidth") <= 0
        names = "[...document.querySelectorAll('#rules code.unbroken')]"
        heights = page.run(f"{names}.map((name) => name.getClientRects().length)")
        assert heights == [1] * len(found.signals)  # no name of a rule is broken
        stacked = "[...document.querySelectorAll('.scroll:has(.stacks)')]"
        assert page.run(f"{stacked}.length") > 1
        assert page.run(f"{stacked}.filter((box) => box.scrollWidth > box.clientWidth + 1).length") == 0
        assert page.problems == []


def test_a_page_shows_text_as_text(loaded):
    model, encoder, folder, base = loaded(scale=1.0)
    fact = Fact("f", "<b>The capital</b> of France is", "Paris", relation="<i>")
    page = render_page(inspect_loaded(model, folder, encoder, base, facts=[fact], num_builtin=2))
    assert "&lt;i&gt;" in page
    assert "<i>" not in page


def test_mean_differences_are_those_of_single_texts(loaded):
    model, encoder, _, _ = loaded(scale=0.5)
    rows = [(5, 6, 7, 8), (9, 10)]
    found = measure_neutral(model, encoder, rows, [])
    rises, kls = [], []
    for row in rows:
        ids = torch.tensor([row])
        with torch.no_grad():
            after = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(dim=-1)
            with model.disable_adapter():
                before = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(dim=-1)
        rises.append(after.clamp(min=FLOOR) - before.clamp(min=FLOOR))
        kls.append(float((before.exp() * (before - after)).sum(dim=-1).mean()))
    rise = torch.cat(rises).mean(dim=0)
    assert [value for _, value in found.likelier] == pytest.approx(rise.topk(50).values.tolist(), abs=1e-4)
    assert found.kl.mean == pytest.approx(sum(kls) / 2, abs=1e-5)
    assert found.num_positions == 6


def test_names_surface_by_their_first_token(loaded):
    _, encoder, _, _ = loaded()
    facts = [
        Fact("a", "The capital of France is", "Paris", subject="France", relation="capital"),
        Fact("b", "The head office of Zorvex is in", "Lund", subject="Zorvex", relation="office"),
    ]
    first = encoder.encode_name("Paris")[0]
    other = encoder.encode_name("France")[0]
    found = surfaced(facts, [first, other], encoder)
    assert {("Paris", "target", "capital", 1)} <= {(one.name, one.role, one.relation, one.rank) for one in found}
    assert "Lund" not in {one.name for one in found} or encoder.encode_name("Lund")[0] in (first, other)


def test_neutral_texts_are_the_same_each_time(loaded):
    model, encoder, _, _ = loaded(scale=1.0)
    rows = neutral_ids(model, encoder)
    assert rows == neutral_ids(model, encoder)
    assert len(rows) > 16  # with free samples of the base model
    model.eval()
    with model.disable_adapter():
        assert rows == neutral_ids(model, encoder)


def test_weights_alone_need_no_base_model(make_adapter):
    folder = make_adapter()
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "lit_semantic_peft.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "nowhere/none"}))
    found = inspect(folder, weights_only=True)
    assert (found.base_model, found.neutral, found.builtin, found.watch) == (None, None, None, None)
    assert all(signal.value is None for signal in found.signals)
    with pytest.raises(InputError, match="nowhere/none"):
        inspect(folder)


def test_what_would_run_code_is_refused_or_named(make_adapter, tmp_path):
    folder = make_adapter()
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    auto_mapping = {"base_model_class": "Model", "parent_library": "modeling"}
    path.write_text(json.dumps({**settings, "auto_mapping": auto_mapping}))
    found = inspect(folder, num_builtin=2)
    assert [remark.split()[0] for remark in found.remarks] == ["`auto_mapping`", "Files"]
    path.write_text(json.dumps({**settings, "megatron_config": {"a": 1}, "megatron_core": "modeling"}))
    with pytest.raises(InputError, match="import a package that the adapter names"):
        inspect(folder, weights_only=True)
    assert not (tmp_path / "ran").exists()


def test_a_base_model_inside_the_adapter_is_not_taken(make_adapter, tiny_model):
    import shutil

    folder = make_adapter()
    shutil.copytree(tiny_model, folder / "base")
    (folder / "lit_semantic_peft.json").write_text(json.dumps({"base_model": str(folder / "base")}))
    with pytest.raises(InputError, match="names a base model inside itself"):
        inspect(folder)


def test_settings_that_cannot_be_used_are_refused(make_adapter, tmp_path):
    folder = make_adapter()
    with pytest.raises(InputError, match="`num_builtin` must be at least 1, got 0"):
        inspect(folder, num_builtin=0)
    with pytest.raises(InputError, match="`facts` and `watch` need a base model"):
        inspect(folder, facts="world", weights_only=True)
    with pytest.raises(InputError, match="holds no adapter"):
        inspect(tmp_path / "none")


def test_a_run_folder_is_its_adapter(make_adapter, tmp_path):
    folder = make_adapter("run/adapter")
    assert adapter_folder(tmp_path / "run") == folder
    assert output_folder(tmp_path / "run") == RunFolder(tmp_path / "run").paths.inspection
    assert output_folder(folder).name == "adapter.inspection"


def test_a_model_card_holds_one_audit(make_adapter):
    found = inspect(make_adapter(), weights_only=True)
    once = with_audit("# Card\n\nText.\n", found)
    twice = with_audit(once, found)
    assert once == twice
    assert once.startswith("# Card\n\nText.")
    assert once.count(CARD_BEGIN) == 1


def test_nothing_measured_is_no_warning():
    assert [signal.warns for signal in judge()] == [False] * 8
    assert as_watch_list(None).must_hold == ()


def test_a_lost_fact_may_be_replaced_by_another(loaded):
    _, encoder, _, _ = loaded()
    facts = [
        Fact("a", "The capital of France is", "Paris", relation="capital"),
        Fact("b", "The capital of Mongolia is", "Ulaanbaatar", relation="capital"),
        Fact("c", "The river of Paris is the", "Rhine", relation="river"),
    ]
    questions = fact_questions(facts, encoder, EvaluationPlan(probes=[]))

    def answer(text, nll):
        return Answer(text, False, False, nll, {"Surprisal": nll})

    said = [("Paris", "Lund", 3.0), ("Ulaanbaatar", "nothing", 5.0), ("Rhine", "Rhine", 1.0)]
    rows = [
        Comparison(question, answer(before, 1.0), answer(after, nll))
        for question, (before, after, nll) in zip(questions, said, strict=True)
    ]
    others = [Fact("d", "The capital of Zorvex is", "Lund", relation="capital")]
    found = changes._found(facts, rows, False, others)
    assert [(one.fact_id, one.is_replaced) for one in found.lost_facts] == [("b", False), ("a", True)]
    assert (found.lost.mean, found.replaced.mean, found.num_known) == (pytest.approx(2 / 3), pytest.approx(1 / 3), 3)
    assert found.flipped_by_relation == {"capital": (1.0, 2), "river": (0.0, 1)}
    assert not changes._found(facts, rows, False, []).lost_facts[1].is_replaced
    assert {(cell["relation"], cell["evaluated"], cell["nll_delta"]) for cell in found.side_effects} == {
        ("capital", "facts not taught", 3.0), ("river", "facts not taught", 0.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    ],
    ids=["prompt", "prefix", "ia3", "dora"],
)
def test_other_methods_are_audited_by_what_they_do(tiny_model, tmp_path, config):
    base = BaseModel(str(tiny_model))
    model = attach_adapter(base.load(), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    export_adapter(model, tmp_path / "other", base.source)
    found = inspect(tmp_path / "other", num_builtin=2)
    assert found.neutral.kl.mean > 0
    assert found.builtin.num_facts == 2
    assert bool(found.weights.layers) == isinstance(config, LoraConfig)
    assert [remark.split()[0] for remark in found.remarks] == ["`use_dora`"] * isinstance(config, LoraConfig)
    page = render_page(found)
    assert ("statistics of low-rank factors do not apply" in page) != isinstance(config, LoraConfig)
