"""competition.yaml: what a person writes there, read as text; every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.competition.facts import CompetitionFacts, read_facts
from pipeline.errors import UserError


def read(tmp_path: Path, text: str) -> CompetitionFacts:
    (tmp_path / "competition.yaml").write_text(text)
    return read_facts(tmp_path)


def test_values_are_the_texts_that_stand_there(tmp_path: Path) -> None:
    facts = read(
        tmp_path,
        "slug: pets\nmetric: roc_auc\npositive_class: yes\nid_column: 0012\nseparator: ' '\ntarget: null\n",
    )
    assert (facts.slug, facts.metric, facts.positive_class, facts.id_column) == (
        "pets",
        "roc_auc",
        ("yes",),
        "0012",
    )
    assert (facts.separator, facts.target, facts.label_column) == (" ", None, None)
    assert read(tmp_path, "positive_class: [JMiPOD, 1]\n").positive_class == ("JMiPOD", "1")
    assert read(tmp_path, "# nothing yet\n") == CompetitionFacts()


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    facts = read(tmp_path, "metric: roc_auc\ntarget: binary\npositive_class: dog\n")
    asked = facts.asked(metric="log_loss", kind=None, positive_class=())
    assert (asked.metric, asked.kind, asked.positive_class) == ("log_loss", "binary", ("dog",))


def test_every_mistake_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, "metrik: auc\nid_column: [a, b]\n")
    assert "'metrik'" in str(caught.value)
    assert "'metric'" in str(caught.value)
    assert "id_column" in str(caught.value)
    for value in ("{cat: 1}", "[[cat], dog]", "[{cat: 1}]"):
        with pytest.raises(UserError, match=r"competition\.yaml.*\n.*positive_class.*cat"):
            read(tmp_path, f"positive_class: {value}\n")
    for text in ("- a\n- b\n", "metric: [", "a: &x 1\nb: *x\n"):
        with pytest.raises(UserError, match=r"competition\.yaml"):
            read(tmp_path, text)
