"""competition.yaml: what a person writes there, read as text; every mistake at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.competition.facts import CompetitionFacts, read_facts, write_slug
from pipeline.errors import UserError


def read(tmp_path: Path, text: str) -> CompetitionFacts:
    (tmp_path / "competition.yaml").write_text(text, encoding="utf-8")
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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("# mine\nmetric: auc\nslug: old # was\n", "# mine\nmetric: auc\nslug: new # was\n"),
        ("# mine\nmetric: auc\n", "# mine\nslug: new\nmetric: auc\n"),
        ("---\nslug: old\nmetric: auc\n", "---\nslug: new\nmetric: auc\n"),
        ("---\n# mine\n", "---\n# mine\nslug: new\n"),
        ("slug : old\nmetric: auc\n", "slug: new\nmetric: auc\n"),
        ("'slug': old\nmetric: auc\n", "slug: new\nmetric: auc\n"),
        ("slug: >\n  old\nmetric: auc\n", "slug: new\nmetric: auc\n"),
        ("slug:\nmetric: auc", "slug: new\nmetric: auc"),
        ("  metric: auc\n  target: binary\n", "  slug: new\n  metric: auc\n  target: binary\n"),
        ("{slug: old, metric: auc}\n", "{slug: new, metric: auc}\n"),
        ("{metric: auc}\n", "{slug: new, metric: auc}\n"),
        ("\ufeffmetric: auc\n", "slug: new\nmetric: auc\n"),
        ("", "slug: new\n"),
    ],
)
def test_only_the_slug_of_a_file_that_a_person_wrote_is_changed(
    tmp_path: Path, before: str, after: str
) -> None:
    metric = read(tmp_path, before).metric
    path = write_slug(tmp_path, "new")
    assert path.read_text(encoding="utf-8") == after
    assert (read_facts(tmp_path).slug, read_facts(tmp_path).metric) == ("new", metric)


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
