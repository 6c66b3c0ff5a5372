"""Each fact that resists is named, with the reasons that the tables give for it and no others."""

from io import StringIO

import pytest
from lit_semantic_peft.reports import RunContents, fact_table, render_report, summarize, terminal_summary
from lit_semantic_peft.reports.tables import PROBE_COLUMNS, _build_table
from rich.console import Console

COUNT = 12
RECALLED = {"efficacy_after": True, "pushed_away": False, "num_target_tokens": 2, "num_subject_tokens": 3}


def summary_of(*changed, probes=None):
    """Twelve facts that are recalled, the first of them with other values."""
    rows = [
        {
            "fact_id": f"f{row}",
            "relation": "r",
            "prompt": f"The river of {row} is",
            "target": f"River {row}",
            "answer_after": f"River {row}",
            "kept": True,
            "nll_after": 1.0,
            **RECALLED,
            **(changed[row] if row < len(changed) else {}),
        }
        for row in range(COUNT)
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    return summarize(fact_table({name: [row.get(name) for row in rows] for name in names}), probes)


def missed(answer, **values):
    return {"efficacy_after": False, "answer_after": answer, **values}


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ([missed("River 7.")], ("it answers as “The river of 7 is” does",)),
        ([missed("Zzz")], ()),
        ([missed("Zzz", answer_before="zzz")], ("it answers as before training",)),
        (
            [missed("River 0, which", begins_right_after=True)],
            ("its answer begins with the target and goes on",),
        ),
        (
            [missed("River 3"), missed("River 3"), {}],
            ("it answers as “The river of 3 is” does", "its answer is the most frequent one, given to 3 facts"),
        ),
        ([missed("Zzz", num_target_tokens=4)], ("its target has 4 tokens, the median is 2",)),
        ([missed("Zzz", num_subject_tokens=5)], ("its name has 5 tokens, the median is 3",)),
        ([missed("Zzz", num_subject_tokens=4)], ()),
        (
            [missed("Zzz", first_learned_epoch=2, learned_at_end=False)],
            ("it was recalled in epoch 3 and lost again",),
        ),
        (
            [missed("Zzz", undone_by_worst=1.5, worst_aggressor="f8")],
            ("a step on 'f8' takes back more than its own gives",),
        ),
        ([missed("Zzz", loss_weight=1.0, loss_weight_used=0.25)], ("it weighed 0.25 in the loss",)),
        ([missed("Zzz", target="Danube"), {"target": "Danube"}, {"target": "danube."}], ("3 facts share its target",)),
        ([{"pushed_away": True}], ()),
    ],
)
def test_the_reasons_of_a_fact(changes, reasons):
    summary = summary_of(*changes)
    assert summary.resisting[0].fact_id == "f0"
    assert summary.resisting[0].reasons == reasons


def test_a_trait_that_recalled_facts_have_as_often_is_no_reason():
    long = {"num_target_tokens": 6}
    assert summary_of(missed("Zzz", **long)).resisting[0].reasons
    assert not summary_of(missed("Zzz", **long), missed("Yyy"), long, *[long] * 4).resisting[0].reasons


def test_a_neighbour_that_has_the_answer_comes_first():
    probes = _build_table(
        PROBE_COLUMNS,
        {"fact_id": ["f0", "f1"], "kind": ["neighborhood"] * 2, "prompt": ["near", "other"], "target": ["River 7"] * 2},
    )
    assert summary_of(missed("River 7"), probes=probes).resisting[0].reasons == ("it answers as “near” does",)


def test_a_fact_of_the_same_relation_is_named_before_others():
    changes = [missed("Danube"), {"target": "Danube", "relation": "s", "prompt": "p1"}, {"target": "Danube"}]
    assert summary_of(*changes).resisting[0].reasons[0] == "it answers as “The river of 2 is” does"


def test_the_worst_come_first_and_are_counted():
    summary = summary_of(
        {"pushed_away": True, "nll_after": 9.0},
        missed("Zzz", nll_after=2.0),
        missed("Yyy", nll_after=3.0, pushed_away=True),
    )
    assert summary.num_resisting == 3
    assert [(one.fact_id, one.outcome) for one in summary.resisting] == [
        ("f2", "not recalled and pushed away"),
        ("f1", "not recalled"),
        ("f0", "pushed away"),
    ]
    assert summary_of().num_resisting == 0


def test_without_answers_the_last_validation_counts():
    unasked = {"efficacy_after": None, "answer_after": None, "learned_at_end": False}
    (one,) = summary_of(unasked).resisting
    assert (one.outcome, one.answer, one.reason) == ("not recalled", None, "no trait sets it apart")
    assert summarize(fact_table({"fact_id": ["a"], "prompt": ["p"], "target": ["t"]})).num_resisting is None


def test_terminal_and_page_name_them():
    summary = summary_of(*[missed("River 7")] * 6)
    console = Console(width=200, record=True, file=StringIO())
    console.print(terminal_summary(summary))
    said = console.export_text()
    assert "Facts that resist, of 12: 6" in said
    assert "  The river of 0 is River 0: not recalled; it answers as “The river of 7 is” does" in said
    assert "  and 1 more, in report.html and summary.json" in said
    facts = fact_table({"fact_id": ["a"], "prompt": ["p"], "target": ["t"]})
    page = render_report(RunContents(facts, summary, None, None, "", "run"))
    assert "6 kept facts are not recalled or were pushed away" in page
    cells = [cell.split("<")[0] for cell in page.split("<td")]
    at = next(at for at, cell in enumerate(cells) if cell.endswith(">not recalled"))
    assert ">it answers as “The river of 7 is” does" in cells[at + 1]
    assert "Facts that resist" not in render_report(RunContents(facts, summary_of(), None, None, "", "run"))
