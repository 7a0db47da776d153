"""`make submit`, most of it with the real `kaggle` command against a server on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import assert_says
from kaggle_server import API_TOKEN, KEY, SECRETS, USER, KaggleServer, kaggle
from PIL import Image

from pipeline import files
from pipeline.competition.facts import write_slug
from pipeline.errors import EXIT_INTERRUPTED, EXIT_USER, Interrupted, UserError, run_command
from pipeline.forms.check import check_predictions
from pipeline.kaggle import cli, ledger, preflight, submit, token
from pipeline.kaggle.begun import begin
from pipeline.kaggle.reply import KaggleError, Reply, explain, read_reply
from pipeline.submission.origin import Origin

MESSAGE = "glyphs, val_accuracy 0.9375, commit abc1234"
FLAGS = ["--competition", "glyphs", "--poll-seconds", "3", "--model", "finetuned_model"]
OLDER = {
    "ref": 11,
    "fileName": "predictions.csv",
    "date": "2026-02-27T08:00:00Z",
    "description": MESSAGE,
    "status": "COMPLETE",
    "publicScore": "0.1",
}
STRANGER = {
    "ref": 6000,
    "fileName": "predictions.csv",
    "date": "2026-02-28T09:00:00Z",
    "description": "b",
    "status": "PENDING",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[KaggleServer]:
    if cli.find_command() is None:
        pytest.skip("the kaggle command is not installed")
    with kaggle(monkeypatch, tmp_path / "home") as running:
        yield running


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project folder: two classes, two test images, a finished run, its predictions.csv."""
    project = tmp_path / "project"
    for name in ("train/cat/1.png", "train/dog/2.png", "test/3.png", "test/4.png"):
        path = project / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    (project / "data/sample_submission.csv").write_text("id,label\n3,cat\n4,cat\n")
    (project / "predictions.csv").write_text("id,label\n3,cat\n4,dog\n")
    (project / "finetuned_model").mkdir()
    run = {"format": 1, "name": "glyphs", "class_names": ["cat", "dog"], "commit": "abc1234"}
    run["best"] = {"metric": "val_accuracy", "value": 0.9375}
    (project / "finetuned_model/run.json").write_text(json.dumps(run))
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def sleeps() -> list[float]:
    return []


def rows() -> list[dict[str, str]]:
    return ledger.read_ledger(ledger.LEDGER)[1]


def a_row(**cells: str) -> dict[str, str]:
    return dict.fromkeys(ledger.COLUMNS, "") | {"competition": "glyphs", "status": "complete"} | cells


# With the real command


def test_waits_for_this_submission_among_others(server, folder, sleeps, capfd):
    server.submissions = [STRANGER, OLDER]
    done = {"status": "COMPLETE", "publicScore": "0.91234", "privateScore": "0.88"}
    server.scoring = [None, {"status": "PENDING"}, done]
    assert submit.main(FLAGS, sleep=sleeps.append) == 0

    assert server.uploads == [(folder / "predictions.csv").read_bytes()]
    assert server.asked("CreateSubmission")[0]["submissionDescription"] == MESSAGE
    assert sleeps == [3, 3]
    (row,) = rows()
    assert row["file_sha256"] == files.sha256(folder / "predictions.csv")
    assert {
        name: row[name]
        for name in ("competition", "message", "validation_score", "public_score", "private_score", "status")
    } == {
        "competition": "glyphs",
        "message": MESSAGE,
        "validation_score": "0.9375",
        "public_score": "0.91234",
        "private_score": "0.88",
        "status": "complete",
    }
    output = "".join(capfd.readouterr())
    assert "public score      0.91234" in output
    assert "private score     0.88" in output
    assert "4 submissions remaining today" in output
    assert "user name and key from KAGGLE_USERNAME and KAGGLE_KEY" in output
    kept = output + "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert not [secret for secret in SECRETS if secret in kept]


def test_same_file_is_refused_without_terminal_and_sent_with_yes(server, folder, sleeps):
    digest = files.sha256(folder / "predictions.csv")
    ledger.append_row(
        ledger.LEDGER,
        a_row(file_sha256=digest, message="first", public_score="0.4", time="2026-01-01T00:00:00+00:00"),
    )
    with pytest.raises(
        UserError, match=r"already sent to glyphs at 2026-01-01.*first, public score 0\.4.*YES=1"
    ):
        submit.main(FLAGS, sleep=sleeps.append)
    assert server.calls == []
    submit.main([*FLAGS, "--yes", "--message", "-second try"], sleep=sleeps.append)
    assert [row["message"] for row in rows()] == ["first", "-second try"]
    assert server.created["description"] == "-second try"


def test_scoring_error_gives_kaggles_reason(server, folder, sleeps):
    server.scoring = [
        {
            "status": "ERROR",
            "errorDescription": "ERROR: Unable to find 2 required key values in the 'id' column",
        }
    ]
    with pytest.raises(UserError, match=r": ERROR: Unable to find 2 "):
        submit.main(FLAGS, sleep=sleeps.append)
    assert [row["status"] for row in rows()] == ["error"]


def test_refused_upload_that_exits_with_zero(server, folder):
    server.upload_status = 400
    with pytest.raises(KaggleError, match=r"Could not submit to competition.*nothing was submitted") as error:
        cli.upload("glyphs", Path("predictions.csv"), "m")
    assert server.asked("CreateSubmission") == [] and not error.value.sent


@pytest.mark.parametrize("taken", [True, False])
def test_a_command_that_was_killed_while_it_sent_sends_nothing_twice(server, folder, sleeps, capfd, taken):
    # The same message, but not this submission
    server.submissions = [OLDER | {"date": datetime.now(UTC).isoformat()}]
    row = a_row(time=datetime.now(UTC).isoformat(timespec="seconds"), message=MESSAGE, status="pending")
    row["file_sha256"] = files.sha256(folder / "predictions.csv")
    begin(ledger.LEDGER, row, ["11"])  # and then SIGKILL, in the upload
    if taken:
        server.submissions.insert(0, OLDER | {"ref": 12, "date": row["time"], "publicScore": "0.9"})
    assert submit.main(FLAGS, sleep=sleeps.append) == 0
    assert len(server.uploads) == (0 if taken else 1)
    assert [row["public_score"] for row in rows()] == ["0.9" if taken else "0.5"]
    assert not list(folder.glob(".submissions.csv.begun"))
    assert ("Kaggle has it" if taken else "Kaggle does not have it") in capfd.readouterr().out


def test_timeout_keeps_a_pending_row_and_the_next_run_completes_it(server, folder, sleeps, capfd):
    server.scoring = [{"status": "PENDING"}]
    assert (
        run_command(lambda: submit.main([*FLAGS, "--timeout-minutes", "0"], sleep=sleeps.append))
        == EXIT_INTERRUPTED
    )
    assert_says(capfd.readouterr().err, "`make submit`", "kaggle competitions submissions -c glyphs")
    assert [row["status"] for row in rows()] == ["pending"]

    server.created["date"] = rows()[0]["time"]
    server.scoring = [{"status": "COMPLETE", "publicScore": "0.77"}]
    assert submit.main(FLAGS, sleep=sleeps.append) == 0
    assert [(row["status"], row["public_score"]) for row in rows()] == [("complete", "0.77")]
    assert len(server.uploads) == 1
    assert "predictions.csv was sent at " in capfd.readouterr().out


def test_a_score_is_found_by_kaggles_number_whatever_the_clock_says(server, folder, sleeps):
    """Two files with one message, as one run makes them with and without --tta; this clock is slow."""
    server.scoring = [{"status": "PENDING"}]
    with pytest.raises(Interrupted):
        submit.main([*FLAGS, "--timeout-minutes", "0"], sleep=sleeps.append)
    (row,) = rows()
    assert row["kaggle_number"] == "7001"
    sent = datetime.fromisoformat(row["time"])
    server.created["date"] = (sent + timedelta(hours=2)).isoformat()
    earlier = OLDER | {"ref": 6999, "publicScore": "0.99"}
    server.submissions.append(earlier | {"date": (sent + timedelta(hours=1)).isoformat()})
    server.scoring = [{"status": "COMPLETE", "publicScore": "0.77"}]
    submit.main(FLAGS, sleep=sleeps.append)
    assert [row["public_score"] for row in rows()] == ["0.77"] and len(server.uploads) == 1


def test_answer_lost_after_the_upload_is_settled_by_the_list(server, folder, sleeps, capfd):
    server.refuse("CreateSubmission", 502)
    assert submit.main(FLAGS, sleep=sleeps.append) == 0
    assert len(server.uploads) == 1 and [row["public_score"] for row in rows()] == ["0.5"]
    assert rows()[0]["kaggle_number"] == "7001"
    assert "its list shows the submission" in capfd.readouterr().out


def test_rules_not_accepted_ends_with_exit_code_2(server, folder, sleeps, capfd):
    server.refuse("ListSubmissions", 403, "You must accept this competition's rules before you can continue")
    assert run_command(lambda: submit.main(FLAGS, sleep=sleeps.append)) == EXIT_USER
    told = capfd.readouterr().err
    assert "https://www.kaggle.com/competitions/glyphs/rules" in told
    assert "or the name is wrong" in told
    assert "You must accept" in told
    assert server.uploads == [] and not ledger.LEDGER.exists()


@pytest.mark.parametrize(
    ("method", "refusal", "told"),
    [
        (
            "StartSubmissionUpload",
            (404, "Not found"),
            r"finds no competition 'glyphs' \(404\).*rules.*or the name is wrong",
        ),
        (
            "CreateSubmission",
            (400, "Submission must have 2 columns"),
            r"refused the request \(400\).*Submission must have 2 columns",
        ),
        (
            "CreateSubmission",
            (400, "Your team has used its daily Submission allowance (5) today"),
            "daily submission limit.*midnight UTC",
        ),
        (
            "CreateSubmission",
            (403, "The submission deadline has passed"),
            "glyphs does not accept submissions .*see https",
        ),
        ("StartSubmissionUpload", (500, ""), r"\(500\): try again"),
        ("StartSubmissionUpload", (429, ""), r"too many requests \(429\): wait 33 s"),
    ],
)
def test_refusals_become_sentences(server, folder, method, refusal, told):
    server.refuse(method, *refusal, Retry_After="33")
    with pytest.raises(UserError, match=told) as error:
        cli.upload("glyphs", Path("predictions.csv"), "m")
    assert "\n" not in str(error.value) and KEY not in str(error.value)


def test_wrong_key_is_named_with_its_place(server, monkeypatch):
    monkeypatch.setenv("KAGGLE_KEY", "a-wrong-key-0123456789")
    with pytest.raises(
        UserError,
        match=r"does not accept the token \(401; user name and key from KAGGLE_USERNAME and KAGGLE_KEY\)",
    ) as error:
        cli.list_submissions("glyphs")
    assert "a-wrong-key" not in str(error.value)


def test_api_token_works_and_an_expired_one_is_named(server, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME")
    monkeypatch.delenv("KAGGLE_KEY")
    monkeypatch.setenv("KAGGLE_API_TOKEN", API_TOKEN)
    server.submissions = [OLDER]
    assert [submission.ref for submission in cli.list_submissions("glyphs")] == ["11"]
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_expired_0123456789")
    with pytest.raises(UserError, match=r"401; API token from KAGGLE_API_TOKEN") as error:
        cli.list_submissions("glyphs")
    assert "expired_0123456789" not in str(error.value)


def test_no_network_is_said(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    reply = cli.call(["competitions", "submissions", "-c", "glyphs", "-v"])
    error = explain(reply, "glyphs")
    assert "could not be reached" in str(error) and error.passing


# Without the command


class FakeKaggle:
    """`list_submissions` and `upload` from prepared answers; an exception among them is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lists: list, upload: object = None):
        self.lists, self.answer = lists, upload or cli.Upload("", "Successfully submitted")
        monkeypatch.setattr(cli, "list_submissions", lambda competition, sleep: self.give(self.lists.pop(0)))
        monkeypatch.setattr(cli, "upload", lambda competition, file, message, tick: self.give(self.answer))

    @staticmethod
    def give(answer):
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> submit.Plan:
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_text("id,label\n")
    return submit.Plan("glyphs", Path("p.csv"), files.sha256(Path("p.csv")), "mine", "0.9")


def listed(
    ref: str, message: str = "mine", status: str = "complete", score: str = "0.7", date=None
) -> cli.Submission:
    return cli.Submission(ref, "p.csv", date, message, status, score, "", "")


def test_ctrl_c_while_waiting_keeps_the_row(plan, monkeypatch):
    FakeKaggle(monkeypatch, [[], [listed("1", status="pending")]])

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="`make submit` again shows its score"):
        submit.submit(plan, sleep=interrupt)
    assert [row["status"] for row in rows()] == ["pending"]


@pytest.mark.parametrize(("after", "kept"), [([listed("1")], ["pending"]), ([], None)])
def test_ctrl_c_while_sending_asks_the_list(plan, monkeypatch, after, kept):
    FakeKaggle(monkeypatch, [[], [], after, after], upload=KeyboardInterrupt())
    with pytest.raises(Interrupted, match="Kaggle has the file" if kept else "most likely not submitted"):
        submit.submit(plan, sleep=lambda _: None)
    assert [row["status"] for row in rows()] == (kept or [])


@pytest.mark.parametrize(
    ("after", "told"),
    [([], "most likely not submitted"), (KaggleError("no network"), "unknown whether .* https")],
)
def test_failed_upload_is_never_sent_again(plan, monkeypatch, after, told):
    FakeKaggle(monkeypatch, [[listed("1")], after, after, after], upload=KaggleError("lost", sent=True))
    with pytest.raises(UserError, match=f"(?s)lost.*{told}"):
        submit.submit(plan, sleep=lambda _: None)
    assert rows() == []


def test_without_a_number_the_new_row_with_this_message_counts(plan, monkeypatch, capsys):
    FakeKaggle(
        monkeypatch,
        [
            [listed("1", score="0.1")],
            [listed("3", message="theirs", score="0.2"), listed("2", score="0.8"), listed("1")],
        ],
    )
    submit.submit(plan, sleep=lambda _: None)
    assert [row["public_score"] for row in rows()] == ["0.8"]
    assert "validation score  0.9" in capsys.readouterr().out


def test_failure_while_waiting_says_that_the_file_was_submitted(plan, monkeypatch):
    FakeKaggle(monkeypatch, [[], KaggleError("Kaggle does not accept the token")])
    with pytest.raises(UserError, match=r"(?s)does not accept the token.*The file itself was submitted"):
        submit.submit(plan, sleep=lambda _: None)
    assert [row["status"] for row in rows()] == ["pending"]


def test_terminal_is_asked_before_the_same_file_goes_again(plan, monkeypatch, capsys):
    ledger.append_row(ledger.LEDGER, a_row(file_sha256=plan.sha256))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    submit.submit(plan)
    assert capsys.readouterr().out == "nothing was sent\n"
    monkeypatch.setattr("builtins.input", lambda question: "y")
    FakeKaggle(monkeypatch, [[], [listed("1")]])
    submit.submit(plan)
    assert [row["message"] for row in rows()] == ["", "mine"]


def test_other_pending_rows_are_refreshed(plan, monkeypatch, capsys):
    then = "2026-03-01T10:00:00+00:00"
    ledger.append_row(
        ledger.LEDGER, a_row(file_sha256="0" * 64, message="earlier", status="pending", time=then)
    )
    ledger.append_row(
        ledger.LEDGER, a_row(competition="other", message="earlier", status="pending", time=then)
    )
    moment = submit.datetime.fromisoformat("2026-03-01T10:00:02+00:00")
    twin = listed("8", message="earlier", score="0.2", date=moment.replace(hour=15))
    before = [twin, listed("9", message="earlier", score="0.6", date=moment)]
    FakeKaggle(monkeypatch, [before, [listed("10"), *before]])
    submit.submit(plan, sleep=lambda _: None)
    assert [(row["status"], row["public_score"]) for row in rows()] == [
        ("complete", "0.6"),
        ("pending", ""),
        ("complete", "0.7"),
    ]
    assert ": 2026-03-01T10:00:00+00:00 earlier: 0.6" in capsys.readouterr().out


def reply(
    code: int = 1,
    status: int | None = None,
    retry_after: float | None = None,
    output: str = "",
    errors: str = "",
) -> Reply:
    return Reply(code, output, errors, status, retry_after, ())


def test_listing_is_tried_again_a_few_times_and_waits_as_told(monkeypatch):
    answers = [
        reply(status=429, retry_after=33.0),
        reply(status=503),
        reply(0, output="No submissions found\n"),
    ]
    monkeypatch.setattr(cli, "call", lambda arguments: answers.pop(0))
    pauses: list[float] = []
    assert cli.list_submissions("glyphs", sleep=pauses.append) == []
    assert pauses == [33.0, 10.0]


@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        (reply(status=503), cli.LISTING_ATTEMPTS),
        (reply(status=403), 1),
        (reply(status=429, retry_after=900), 1),
    ],
)
def test_listing_gives_up(monkeypatch, answer, tries):
    calls: list[list[str]] = []
    monkeypatch.setattr(cli, "call", lambda arguments: calls.append(arguments) or answer)
    with pytest.raises(KaggleError):
        cli.list_submissions("glyphs", sleep=lambda _: None)
    assert len(calls) == tries


def test_list_of_an_old_command_is_read(monkeypatch):
    warning = "Warning: Looks like you're using an outdated API Version\n"
    table = (
        "fileName,date,description,status,publicScore,privateScore\np.csv,2024-01-01 "
        '10:00:00,"two\nlines",complete,0.5,None\n'
    )
    monkeypatch.setattr(cli, "call", lambda arguments: reply(0, output=warning + table))
    (submission,) = cli.list_submissions("glyphs")
    assert (submission.status, submission.public_score, submission.private_score) == ("complete", "0.5", "")
    assert submission.message == "two\nlines" and submission.ref == "p.csv 2024-01-01 10:00:00"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            reply(errors="ModuleNotFoundError: No module named 'six'"),
            "'six' is missing: pip install kaggle six",
        ),
        (
            reply(errors="OSError: Could not find kaggle.json. Make sure"),
            "too old for .*pip install --upgrade kaggle",
        ),
        (reply(errors="something new"), r'exit code 1\) \(Kaggle says: "something new"\)'),
    ],
)
def test_failures_of_the_command_itself(monkeypatch, tmp_path, answer, told):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=told):
        raise explain(answer, "glyphs")


def test_answer_belongs_to_the_last_request():
    request = "-----------Request-----------\nPOST\n" + "-" * 50
    answer = '-----------Response-----------\n200\nA: b\n\n{"token": "x"}\n' + "-" * 50
    lost = read_reply(
        1,
        f"{request}\n{answer}\n{request}\n",
        "DEBUG:urllib3:x\n('Connection aborted.', RemoteDisconnected())\n",
    )
    assert (lost.status, lost.output) == (None, "") and "could not be reached" in str(explain(lost, "glyphs"))
    assert read_reply(0, f"{request}\n{answer}\nsent\n", "").bodies[-1] == {"token": "x"}


HOSTILE = "\x1b]0;owned\x07\x1b[2Jdone\x9b31m\u202e"
OBEYED = set("\x1b\x07\x9b\r\u202e")


def test_what_kaggle_says_moves_no_cursor_anywhere(server, folder, sleeps, capfd):
    """Escape sequences in the scores, in the reason of a failed scoring and in a refusal: neither on the
    terminal nor in the ledger.
    """
    server.scoring = [{"status": "COMPLETE", "publicScore": f"0.5{HOSTILE}", "privateScore": HOSTILE}]
    assert submit.main(FLAGS, sleep=sleeps.append) == 0
    server.scoring = [{"status": "ERROR", "errorDescription": f"column {HOSTILE}"}]
    run_command(lambda: submit.main([*FLAGS, "--yes"], sleep=sleeps.append))
    server.refuse("StartSubmissionUpload", 403, f"no {HOSTILE}")
    run_command(lambda: submit.main([*FLAGS, "--yes"], sleep=sleeps.append))
    said = capfd.readouterr()
    assert "0.5" in said.out and "column" in said.err and "Kaggle" in said.err
    assert OBEYED.isdisjoint(said.out + said.err)
    assert OBEYED.isdisjoint(ledger.LEDGER.read_text(encoding="utf-8"))


def test_a_token_hidden_by_control_characters_or_escapes_is_not_shown(monkeypatch, tmp_path):
    command = tmp_path / "kaggle"
    split, escaped = "KGAT_ab\x1bcdef", json.dumps({"message": "KGAT_abcdef"}).replace("K", "\\u004b")
    block = f"{'-' * 20}Response{'-' * 20}\n403\n\n{escaped}\n{'-' * 50}"
    (tmp_path / "said").write_text(f"{split}\n{block}\n")
    command.write_text(f"#!/bin/sh\ncat '{tmp_path / 'said'}'; exit 1\n")
    command.chmod(0o755)
    monkeypatch.setattr(cli, "find_command", lambda: command)
    reply = cli.call(["x"])
    assert reply.status == 403 and "abcdef" not in reply.text + reply.said and "***" in reply.said


@pytest.mark.parametrize("header", ["soon", "²", "nan", "inf", "-5", "1e9999", "9" * 400, "\x1b[2J"])
def test_a_retry_after_that_is_no_number_says_nothing(header):
    text = (
        f"{'-' * 20}Request{'-' * 20}\nx\n{'-' * 50}\n{'-' * 20}Response{'-' * 20}\n429 x\nRetry-After: "
        f"{header}\n\n{{}}\n{'-' * 50}\n"
    )
    answer = read_reply(1, text, "")
    assert (answer.status, answer.retry_after) == (429, None)


def test_deep_json_in_an_answer_is_no_body():
    text = f"{'-' * 20}Response{'-' * 20}\n200\n\n{'[' * 100_000}\n{'-' * 50}\n"
    assert read_reply(0, text, "").bodies == ({},)


def test_hanging_command_is_ended(monkeypatch, tmp_path):
    script = tmp_path / "kaggle"
    script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    script.chmod(0o755)
    monkeypatch.setattr(cli, "find_command", lambda: script)
    ticks: list[None] = []
    with pytest.raises(KaggleError, match="did not answer within 1 s") as error:
        cli.call(["--version"], timeout_s=1, tick=lambda: ticks.append(None))
    assert error.value.sent and ticks


# Preflight


def test_preflight_lists_everything_at_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cli, "find_command", lambda: None)
    Path("submissions.csv").write_text("time;competition\n")
    with pytest.raises(UserError) as error:
        submit.main([])
    for told in (
        "no Kaggle token",
        "https://www.kaggle.com/settings/api",
        "pip install kaggle six",
        "COMPETITION=<name>",
        "python inference.py",
        "no column time, competition",
    ):
        assert told in str(error.value)
    assert Path("submissions.csv").read_text() == "time;competition\n"


def test_preflight_checks_the_file_and_remembers_the_competition(folder, monkeypatch):
    monkeypatch.setattr(cli, "not_ready", list)
    write_slug(folder / "data", "from-make-data")
    args = submit._parser().parse_args([])
    assert submit.preflight(args).competition == "from-make-data"
    (folder / "predictions.csv").write_text("id,label\n3,cat\n4,horse\n")
    with pytest.raises(UserError, match=r"(?s)nothing was sent to Kaggle.*horse"):
        submit.preflight(args)


def test_a_file_that_changes_during_the_checks_is_not_sent(folder, server, monkeypatch):
    """Else the new file would go with the checks, the message and the validation score of the old one."""

    def while_it_checks(path: Path, *rest: object) -> list[str]:
        found = check_predictions(path, *rest)
        path.write_text("id,label\n3,dog\n4,bird\n")
        return found

    monkeypatch.setattr(preflight, "check_predictions", while_it_checks)
    with pytest.raises(
        UserError, match=r"predictions\.csv was changed while it was checked; nothing was sent"
    ):
        submit.main([*FLAGS, "--yes"])
    assert server.uploads == []


def test_the_sample_suffices_and_what_it_cannot_show_is_said(folder, monkeypatch, capsys):
    monkeypatch.setattr(cli, "not_ready", list)
    shutil.rmtree(folder / "data" / "test")
    assert (
        submit.preflight(
            submit._parser().parse_args(["--competition", "pets", "--model", "finetuned_model"])
        ).competition
        == "pets"
    )
    assert "not checked" not in capsys.readouterr().out  # the labels of the training images were compared
    shutil.rmtree(folder / "data" / "train")
    submit.preflight(submit._parser().parse_args(["--competition", "pets", "--model", "finetuned_model"]))
    assert "not checked: whether the model belongs to this competition" in capsys.readouterr().out
    (folder / "predictions.csv").write_text("id,label\n3,cat\n5,dog\n")
    with pytest.raises(UserError, match="5"):
        submit.preflight(submit._parser().parse_args(["--competition", "pets", "--model", "finetuned_model"]))


def test_name_remembered_by_an_earlier_version(folder, monkeypatch):
    monkeypatch.setattr(cli, "not_ready", list)
    files.write_json(folder / "data/competition.json", {"slug": "from-make-data"})
    assert submit.preflight(submit._parser().parse_args([])).competition == "from-make-data"


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ("[]", "expected an object"),
        ('{"class_names": ["cat", "dog"]}', "format None, expected 1"),
        ('{"format": 1}', "class_names"),
        ('{"format": 1, "class_names": ["cat", "dog"], "target": {"kind": "mood"}}', "target: expected"),
    ],
)
def test_record_that_is_not_ours_is_one_problem_among_others(folder, monkeypatch, record, told):
    monkeypatch.setattr(cli, "not_ready", lambda: ["no Kaggle token"])
    (folder / "finetuned_model/run.json").write_text(record)
    with pytest.raises(UserError) as error:
        submit.preflight(submit._parser().parse_args(FLAGS))
    lines = str(error.value).splitlines()
    assert lines[1] == "  - no Kaggle token"
    assert "finetuned_model/run.json" in lines[2]
    assert told in " ".join(lines[2:])


def test_default_message_without_a_run() -> None:
    assert preflight.default_message(None, Path("predictions.csv")) == "predictions.csv"
    assert (
        preflight.default_message(Origin("", "2026-03-01T10:00:00", ("runs/a",), ("glyphs",)), Path("p.csv"))
        == "glyphs"
    )


# Tokens


@pytest.mark.parametrize(
    ("environment", "home_files", "kind"),
    [
        ({}, {}, ""),
        (
            {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY},
            {},
            "user name and key from KAGGLE_USERNAME and KAGGLE_KEY",
        ),
        (
            {},
            {".kaggle/kaggle.json": json.dumps({"username": USER, "key": KEY})},
            "user name and key from .*kaggle.json",
        ),
        (
            {},
            {".config/kaggle/kaggle.json": json.dumps({"username": USER, "key": KEY})},
            "user name and key from .*config/kaggle/kaggle.json",
        ),
        (
            {"KAGGLE_CONFIG_DIR": "{home}/x"},
            {"x/kaggle.json": json.dumps({"username": USER, "key": KEY})},
            "user name and key from .*x/kaggle.json",
        ),
        (
            {"KAGGLE_API_TOKEN": API_TOKEN},
            {".kaggle/access_token": "other"},
            "API token from KAGGLE_API_TOKEN",
        ),
        ({"KAGGLE_KEY": KEY}, {".kaggle/access_token": API_TOKEN + "\n"}, "API token from .*access_token"),
        ({}, {".kaggle/credentials.json": json.dumps({"refresh_token": "r" * 20})}, "`kaggle auth login`"),
    ],
)
def test_token_kinds(monkeypatch, tmp_path, environment, home_files, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, text in home_files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = token.find_credentials({name: value.format(home=tmp_path) for name, value in environment.items()})
    assert re.fullmatch(kind, found.kind), found.kind
    assert bool(found.problem) == (kind == "")
    assert KEY not in repr(found) and API_TOKEN not in repr(found)


@pytest.mark.parametrize(
    ("environment", "name", "content", "secret"),
    [
        ({}, "access_token", f'"{API_TOKEN}"\n'.encode(), API_TOKEN),
        ({}, "access_token", f"export KAGGLE_API_TOKEN={API_TOKEN}\n".encode(), API_TOKEN),
        ({}, "access_token", f"\ufeff{API_TOKEN}\n".encode(), API_TOKEN),
        ({}, "access_token", API_TOKEN.encode("utf-16"), API_TOKEN),
        ({}, "access_token", f"{API_TOKEN}\n{API_TOKEN}\n".encode(), API_TOKEN),
        ({"KAGGLE_API_TOKEN": f"{API_TOKEN}\nold"}, "", b"", API_TOKEN),
        ({}, "kaggle.json", json.dumps({"username": USER, "key": API_TOKEN}).encode(), API_TOKEN),
        ({"KAGGLE_API_TOKEN": f"'{API_TOKEN}'"}, "", b"", API_TOKEN),
        ({"KAGGLE_USERNAME": USER, "KAGGLE_KEY": API_TOKEN}, "", b"", API_TOKEN),
        ({"KAGGLE_USERNAME": USER, "KAGGLE_KEY": f'"{KEY}"'}, "", b"", KEY),
        ({}, "kaggle.json", b"\xef\xbb\xbf" + json.dumps({"username": USER, "key": KEY}).encode(), KEY),
        ({}, "kaggle.json", json.dumps({"username": USER, "key": KEY}).encode("utf-16"), KEY),
        ({}, "kaggle.json", json.dumps({"username": USER, "key": f"'{KEY}' "}).encode(), KEY),
    ],
)
def test_a_right_token_in_a_wrong_form_is_fixed_by_the_command_shown(
    monkeypatch, tmp_path, environment, name, content, secret
):
    for variable in ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kaggle").mkdir()
    if name:
        (tmp_path / ".kaggle" / name).write_bytes(content)
    problem = token.find_credentials(environment).problem
    assert problem and secret not in problem and "create one" not in problem
    command = problem.partition("form: ")[2].partition(": ")[2]
    variable, kind = (
        ("KAGGLE_API_TOKEN", "API token") if secret == API_TOKEN else ("KAGGLE_KEY", "user name and key")
    )
    shown = subprocess.run(
        ["bash", "-c", f'{command}; printf %s "${variable}"'],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    after = (
        {variable: shown.stdout, **({"KAGGLE_USERNAME": USER} if secret == KEY else {})}
        if shown.stdout
        else {}
    )
    found = token.find_credentials(after)
    assert (found.kind.startswith(kind), found.problem, found.secrets[0]) == (True, "", secret)


def test_a_token_behind_an_escaped_line_break_is_not_shown():
    assert API_TOKEN not in token.scrub(rf"Invalid header value b'Bearer x\n{API_TOKEN}'")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f'{{"username": "x", "key": "{KEY}"', "not valid JSON"),
        ('{"username": "x"}', "KAGGLE_KEY is missing"),
        ("[]", "a JSON object"),
    ],
)
def test_broken_kaggle_json_is_named_but_not_quoted(monkeypatch, tmp_path, text, told):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle/kaggle.json").write_text(text)
    problem = token.find_credentials({}).problem
    assert told in problem and str(tmp_path / ".kaggle/kaggle.json") in problem and KEY not in problem


def test_scrub_takes_out_every_form_of_a_token(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_USERNAME", USER)
    monkeypatch.setenv("KAGGLE_KEY", KEY)
    text = (
        f"key {KEY}; Authorization: Basic {SECRETS[2]}; Authorization: Bearer someoneelses; {API_TOKEN}; "
        "http://me:pass@proxy:8080/"
    )
    cleaned = token.scrub(text)
    assert not [secret for secret in (*SECRETS, "someoneelses", "pass") if secret in cleaned]
    assert cleaned.startswith("key ***; ") and cleaned.endswith("http://***@proxy:8080/")


@pytest.mark.parametrize(
    "text",
    [
        "glyphs-2",
        "https://www.kaggle.com/competitions/glyphs-2/overview",
        "https://kaggle.com/c/glyphs-2?x=1",
        "https://www.kaggle.com/competitions/glyphs-2#description",
        "kaggle.com/c/glyphs-2/data",
        "HTTPS://WWW.Kaggle.com/competitions/glyphs-2",
    ],
)
def test_slug_from_name_or_address(text):
    assert cli.clean_slug(text) == "glyphs-2"


def test_a_competition_that_kaggle_does_not_find_was_not_sent_to():
    """The command ends with 0 then, and Kaggle's list was searched for a file that cannot be there."""
    error = explain(read_reply(0, "Could not find competition: glyfs", ""), "glyfs")
    assert not error.sent and "finds no competition 'glyfs'" in str(error)


def test_slug_refuses_flags_and_sentences():
    for text in ("--help", "my competition", ""):
        with pytest.raises(UserError, match=f"{text!r} is not a competition name"):
            cli.clean_slug(text)


# The ledger


@pytest.mark.parametrize(
    "message", ["=1+1", "+a", "-b, c", "@sum", "'=quoted", "''=twice", "'plain", "-0.5", 'with "quotes"', ""]
)
def test_ledger_keeps_messages_and_is_safe_in_a_spreadsheet(tmp_path, message):
    path = tmp_path / "submissions.csv"
    row = a_row(message=message, public_score="-0.25", time="t")
    ledger.append_row(path, row)
    ledger.append_row(path, row)
    assert ledger.read_ledger(path) == (list(ledger.COLUMNS), [row, row])
    cells = path.read_text().splitlines()[1].split(",")
    assert not cells[3].startswith(("=", "+", "@", "-b")) and "-0.25" in cells


def test_ledger_keeps_columns_and_rows_of_others(tmp_path):
    path = tmp_path / "submissions.csv"
    path.write_text(
        "\ufeff" + ",".join([*ledger.COLUMNS, "note"]) + "\r\n" + "t,glyphs,abc,m,,,,pending,mine\r\n",
        encoding="utf-8",
    )
    row = ledger.append_row(path, a_row(file_sha256="def"))
    ledger.update_row(path, row, {"public_score": "0.5"})
    columns, (first, second) = ledger.read_ledger(path)
    assert columns[-1] == "note" and first["note"] == "mine" and second["public_score"] == "0.5"
    assert ledger.ledger_digests(path) == {"abc", "def"}
    ledger.update_row(path, a_row(file_sha256="removed by hand"), {"status": "error"})
    assert [row["status"] for row in ledger.read_ledger(path)[1]] == ["pending", "complete", "error"]


@pytest.mark.parametrize(
    "data", [b"a,b\n1,2\n", (",".join(ledger.COLUMNS) + "\nt,glyphs\n").encode(), b"\xff\xfe\x00"]
)
def test_unreadable_ledger_is_never_written(tmp_path, data):
    path = tmp_path / "submissions.csv"
    path.write_bytes(data)
    for act in (lambda: ledger.append_row(path, a_row()), lambda: ledger.ledger_digests(path)):
        with pytest.raises(UserError, match="not a readable ledger"):
            act()
    assert path.read_bytes() == data


def test_no_ledger_has_no_digests(tmp_path):
    assert ledger.ledger_digests(tmp_path / "submissions.csv") == set()


def test_two_at_once_send_a_file_once(server, folder):
    """Both are told to send the same file; the second waits, and then only waits for the score of what the
    first sent.
    """
    now = {"date": datetime.now(UTC).isoformat()}
    server.scoring = [{"status": "PENDING"} | now] * 3 + [{"status": "COMPLETE", "publicScore": "0.5"} | now]
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, *"-m pipeline.kaggle.submit --competition glyphs --poll-seconds 0.1".split()]
    environment = os.environ | {"PYTHONPATH": str(root)}
    both = [
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert len(server.uploads) == 1, said
    assert len(rows()) == 1 and rows()[0]["status"] == "complete"
    # 2: scored before the second looked
    assert sorted(process.returncode for process in both) in ([0, 0], [0, 2]), said
    assert sum("sent to Kaggle" in text for text in said) == 1


def test_a_file_changed_after_its_check_is_not_sent(plan, monkeypatch):
    monkeypatch.setattr(cli, "list_submissions", lambda *_, **__: [])
    plan.file.write_text("id,label\n1,cat\n")
    with pytest.raises(UserError, match="changed after it was checked"):
        submit.submit(plan)


def test_a_file_changed_while_it_is_sent_arrives_as_it_was_checked(plan, monkeypatch):
    sent, checked = [], plan.file.read_text()

    def upload(_competition, file, _message, **_more):
        plan.file.write_text("id,label\n1,cat\n")
        sent.append((file.name, file.read_text()))
        return cli.Upload("7", "Successfully submitted")

    monkeypatch.setattr(cli, "upload", upload)
    monkeypatch.setattr(cli, "list_submissions", lambda *_, **__: [])
    with pytest.raises(Interrupted):
        submit.submit(plan, timeout_s=0, sleep=lambda _: None)
    assert sent == [(plan.file.name, checked)]


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf"])
def test_a_pause_that_is_no_number_is_told_in_words(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        submit.main([f"--poll-seconds={text}"])
    assert f"--poll-seconds: {text} is not a number from 0" in capsys.readouterr().err
