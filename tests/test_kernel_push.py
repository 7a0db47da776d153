"""`make kernel PUSH=1` with the real `kaggle` command against a server on loopback: the stages, each silent
trap, left and continued.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from kaggle_code_server import CodeServer, owned
from kaggle_server import SECRETS, kaggle

from pipeline.competition.facts import CompetitionFacts
from pipeline.errors import Interrupted, UserError
from pipeline.files import sha256
from pipeline.folds.team import gather
from pipeline.kaggle import cli, ledger
from pipeline.kernel import make, rehearsal, remote
from pipeline.kernel import push as push_module
from pipeline.kernel.bundle import Bundle, make_bundle
from pipeline.kernel.push import push, signed_in_owner
from pipeline.kernel.script import Settings
from pipeline.kernel.slugs import Names, dataset_metadata
from pipeline.kernel.stages import Stages

NAMES = Names("someone", "glyphs-digits")
SETTINGS = Settings("glyphs", NAMES.dataset, ("digits",), "0" * 64)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[CodeServer]:
    if cli.find_command() is None:
        pytest.skip("the kaggle command is not installed")
    with kaggle(monkeypatch, tmp_path / "home", CodeServer) as running:
        yield running


@pytest.fixture(scope="module")
def made(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_bundle(gather([finished_run / "run"]), folder / "dataset", CompetitionFacts())
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel folder as it is after the rehearsal."""
    project = tmp_path / "project"
    shutil.copytree(made, project / "kernel")
    (project / "kernel/dataset/dataset-metadata.json").write_text(json.dumps(dataset_metadata(NAMES)))
    make.write_kernel(project / "kernel", NAMES, SETTINGS, False, "NvidiaTeslaT4", Stages(project / "kernel"))
    monkeypatch.chdir(project)
    return project / "kernel"


class Pushing:
    """`push` of the folder, as `make kernel PUSH=1` calls it."""

    def __init__(self, folder: Path, finished_run: Path) -> None:
        self.folder, self.team = folder, gather([finished_run / "run"])
        self.args = SimpleNamespace(
            hours=9.0, accelerator="NvidiaTeslaT4", poll_seconds=3.0, message="a message", yes=True
        )
        self.sleeps: list[float] = []
        self.script = ""  # digest of the rehearsed code file; "": of the file as it is

    def __call__(self) -> None:
        manifest = json.loads((self.folder / "dataset/bundle.json").read_text())
        bundle = Bundle(
            self.folder / "dataset", sha256(self.folder / "dataset/bundle.json"), manifest, is_new=False
        )
        code, stages = self.folder / "kernel/kernel.py", Stages(self.folder)
        script = self.script or sha256(code)
        push(
            self.folder,
            bundle,
            code,
            NAMES,
            "glyphs",
            self.team,
            stages,
            self.args,
            script,
            self.sleeps.append,
        )


@pytest.fixture
def pushing(folder: Path, finished_run: Path) -> Pushing:
    return Pushing(folder, finished_run)


def rows() -> list[dict[str, str]]:
    return ledger.read_ledger(ledger.LEDGER)[1]


def test_from_the_bundle_to_the_score(
    server: CodeServer, pushing: Pushing, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.dataset_steps = ["BLOBS_RECEIVED", "READY"]
    server.runs = [[{"status": "QUEUED"}, {"status": "RUNNING"}, {"status": "COMPLETE"}]]
    server.scoring = [None, {"status": "PENDING"}, {"status": "COMPLETE", "publicScore": "0.91"}]
    pushing()

    ((dataset,),) = server.datasets.values()
    assert sorted(dataset["files"]) == ["bundle.json", "members.zip", "pipeline.zip"]
    assert dataset["private"] is True
    sent = server.unpacked()
    files = json.loads((folder / "dataset/bundle.json").read_text())["files"]
    assert {name.partition("/")[2] for name in files} == set(sent)  # folders travel, with everything in them
    (kernel,) = server.kernels[owned("glyphs-digits")]
    assert kernel["enableInternet"] is False and kernel["isPrivate"] is True and kernel["enableGpu"] is True
    assert (kernel["machineShape"], kernel["sessionTimeoutSeconds"]) == ("NvidiaTeslaT4", 9 * 3600)
    assert kernel["datasetDataSources"] == [owned("glyphs-digits-bundle")] and kernel[
        "competitionDataSources"
    ] == ["glyphs"]
    assert kernel["text"] == (folder / "kernel/kernel.py").read_text()
    (submitted,) = server.asked("CreateCodeSubmission")
    assert submitted == {
        "competitionName": "glyphs",
        "kernelOwner": "someone",
        "kernelSlug": "glyphs-digits",
        "kernelVersion": 1,
        "fileName": "submission.csv",
        "submissionDescription": "a message",
    }
    (row,) = rows()
    assert (row["public_score"], row["status"], row["file_sha256"]) == (
        "0.91",
        "complete",
        sha256(folder / "kernel/kernel.py"),
    )
    printed = "".join(capfd.readouterr())
    assert "public score      0.91" in printed
    kept = printed + "".join(
        path.read_text(errors="replace") for path in folder.parent.rglob("*") if path.is_file()
    )
    assert not [secret for secret in SECRETS if secret in kept]


def test_nothing_is_pushed_twice(server: CodeServer, pushing: Pushing) -> None:
    pushing()
    pushing.args.yes = False
    with pytest.raises(UserError, match=r"already sent to glyphs.*public score 0\.5"):
        pushing()
    assert [len(versions) for versions in (*server.datasets.values(), *server.kernels.values())] == [1, 1]
    assert len(server.asked("CreateCodeSubmission")) == 1


@pytest.mark.parametrize("by_hand", [False, True])
def test_other_hardware_or_metadata_become_a_new_version(
    server: CodeServer, pushing: Pushing, folder: Path, by_hand: bool
) -> None:
    pushing()
    if by_hand:
        path = folder / "kernel/kernel-metadata.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps(values | {"enable_tpu": True}))
    else:
        pushing.args.accelerator = "NvidiaL4"
    pushing()
    first, second = server.kernels[owned("glyphs-digits")]
    assert first["text"] == second["text"]
    if not by_hand:
        assert (first["machineShape"], second["machineShape"]) == ("NvidiaTeslaT4", "NvidiaL4")
    assert [sent["kernelVersion"] for sent in server.asked("CreateCodeSubmission")] == [1, 2]


def test_left_while_it_is_scored_and_continued_with_yes(
    server: CodeServer, pushing: Pushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.scoring = [{"status": "PENDING"}]
    pushing.args.hours = -2.0  # no patience at all
    monkeypatch.setattr(remote, "push_kernel", lambda *_, **__: _saved(server))
    with pytest.raises(Interrupted, match="`make kernel` with PUSH=1 again shows its score"):
        pushing()
    server.scoring, pushing.args.hours = [{"status": "COMPLETE", "publicScore": "0.7"}], 9.0
    pushing()
    assert len(server.asked("CreateCodeSubmission")) == 1 and [row["public_score"] for row in rows()] == [
        "0.7"
    ]


def _saved(server: CodeServer) -> int:
    server.kernels[owned("glyphs-digits")] = [{}]
    return 1


def test_left_while_it_runs_and_continued(
    server: CodeServer, pushing: Pushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = remote.kernel_status

    def interrupted(kernel: str) -> remote.Status | None:
        if server.kernels:
            raise KeyboardInterrupt
        return ask(kernel)

    monkeypatch.setattr(remote, "kernel_status", interrupted)
    with pytest.raises(Interrupted, match="someone/glyphs-digits still runs on Kaggle"):
        pushing()
    monkeypatch.setattr(remote, "kernel_status", ask)
    pushing()
    assert len(server.kernels[owned("glyphs-digits")]) == 1 and len(server.asked("CreateCodeSubmission")) == 1


def test_a_changed_bundle_becomes_a_new_version(server: CodeServer, pushing: Pushing, folder: Path) -> None:
    pushing()
    manifest = json.loads((folder / "dataset/bundle.json").read_text())
    (folder / "dataset/bundle.json").write_text(json.dumps(manifest | {"facts": {"metric": "macro_f1"}}))
    (folder / "kernel/kernel.py").write_text("# another script\n")
    pushing()
    assert len(server.datasets[owned("glyphs-digits-bundle")]) == 2
    assert len(server.kernels[owned("glyphs-digits")]) == 2
    assert [body["kernelVersion"] for body in server.asked("CreateCodeSubmission")] == [1, 2]


# ---- what goes wrong in silence ----


def test_what_was_changed_after_the_rehearsal_is_not_sent(
    server: CodeServer, pushing: Pushing, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = next((folder / "dataset/pipeline").rglob("*.py"))
    before, send = code.read_bytes(), remote.send_dataset

    code.write_bytes(before + b"#")
    with pytest.raises(
        UserError, match=r"bundle was changed after the rehearsal; nothing was sent(?s:.*)bytes"
    ):
        pushing()
    assert not server.datasets

    code.write_bytes(before)

    def changed_meanwhile(*arguments, **more):
        send(*arguments, **more)
        code.write_bytes(before + b"#")

    monkeypatch.setattr(remote, "send_dataset", changed_meanwhile)
    with pytest.raises(UserError, match="may hold a mixture"):
        pushing()
    assert not server.kernels
    monkeypatch.setattr(remote, "send_dataset", send)
    code.write_bytes(before)
    pushing.script = "0" * 64
    with pytest.raises(UserError, match=r"kernel\.py was changed after it was checked; nothing was sent"):
        pushing()
    assert len(next(iter(server.datasets.values()))) == 2 and not server.kernels  # sent again as it was
    pushing.script = ""
    pushing()
    assert rows()[-1]["status"] == "complete"


def test_a_code_file_changed_while_its_version_runs_is_submitted_as_it_was_pushed(
    server: CodeServer, pushing: Pushing, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, wait = folder / "kernel/kernel.py", push_module._wait_for_kernel
    pushed = sha256(code)

    def changed_meanwhile(*arguments):
        code.write_text(code.read_text() + "# the next idea")
        return wait(*arguments)

    monkeypatch.setattr(push_module, "_wait_for_kernel", changed_meanwhile)
    pushing()
    assert [row["file_sha256"] for row in rows()] == [pushed] and rows()[0]["status"] == "complete"


def test_a_dataset_refused_with_exit_code_0(server: CodeServer, pushing: Pushing) -> None:
    server.dataset_answer = {"status": "error", "error": "Private dataset quota exceeded", "url": ""}
    with pytest.raises(UserError, match='someone/glyphs-digits-bundle: "Private dataset quota exceeded"'):
        pushing()
    server.dataset_answer = {}
    pushing()
    assert len(server.datasets[owned("glyphs-digits-bundle")]) == 1


def test_a_dataset_that_is_said_to_be_made_and_never_comes(
    server: CodeServer, pushing: Pushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the quota of private datasets: Kaggle/kaggle-cli#284."""
    server.dataset_answer = {"status": "ok", "url": "https://www.kaggle.com/x"}
    monkeypatch.setattr(push_module, "ABSENT_LOOKS", 2)
    with pytest.raises(
        UserError,
        match=r"dataset someone/glyphs-digits-bundle, .*space for private "
        r"datasets.*https://www\.kaggle\.com/settings",
    ):
        pushing()
    server.dataset_answer = {}
    pushing()
    assert len(server.datasets[owned("glyphs-digits-bundle")]) == 1


def test_folders_that_were_skipped_are_named(
    server: CodeServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = cli.call
    monkeypatch.setattr(
        cli,
        "call",
        lambda arguments, **more: call([word for word in arguments if word not in ("-r", "zip")], **more),
    )
    with pytest.raises(UserError, match=r"lacks .*(members|pipeline)"):
        remote.send_dataset(folder / "dataset", NAMES.dataset, None)


def test_a_kernel_refused_with_exit_code_0(server: CodeServer, pushing: Pushing) -> None:
    server.save_answer = {"error": "Maximum weekly GPU quota of 30.00 hours reached."}
    with pytest.raises(UserError, match=r"the kernel someone/glyphs-digits: .*Maximum weekly GPU quota"):
        pushing()
    assert not server.asked("CreateCodeSubmission")
    server.save_answer = {}
    pushing()
    assert len(server.asked("CreateCodeSubmission")) == 1


@pytest.mark.parametrize(
    ("key", "kind"), [("invalidDatasetSources", "dataset"), ("invalidCompetitionSources", "competition")]
)
def test_data_that_were_not_attached(key: str, kind: str, server: CodeServer, pushing: Pushing) -> None:
    server.save_answer = {key: ["gone"]}
    with pytest.raises(
        UserError, match=rf"without what it needs \({kind} \['gone'\]\). Version 1 runs without it"
    ):
        pushing()
    assert not server.asked("CreateCodeSubmission")
    server.save_answer = {}
    pushing()
    assert server.asked("CreateCodeSubmission")[0]["kernelVersion"] == 2


def test_a_first_run_that_began_before_its_data_were_there_is_pushed_once_more(
    server: CodeServer, pushing: Pushing
) -> None:
    server.runs = [[{"status": "ERROR"}], [{"status": "COMPLETE"}]]
    server.logs, server.outputs = ["NOT MOUNTED: the dataset\n", "well\n"], [[], ["submission.csv"]]
    pushing()
    assert len(server.kernels[owned("glyphs-digits")]) == 2
    assert server.asked("CreateCodeSubmission")[0]["kernelVersion"] == 2


def test_data_that_never_come_are_pushed_for_no_third_time(server: CodeServer, pushing: Pushing) -> None:
    server.runs, server.logs, server.outputs = [[{"status": "ERROR"}]], ["NOT MOUNTED: the dataset\n"], [[]]
    with pytest.raises(
        UserError, match=r"version 2 of someone/glyphs-digits failed on Kaggle(.|\n)*NOT MOUNTED"
    ):
        pushing()
    assert len(server.kernels[owned("glyphs-digits")]) == 2 and not server.asked("CreateCodeSubmission")


def test_a_failed_run_shows_the_end_of_its_log(server: CodeServer, pushing: Pushing, folder: Path) -> None:
    server.runs, server.outputs = [[{"status": "ERROR", "failureMessage": "exit code 1"}]], [[]]
    server.logs = ["".join(f"line {number}\n" for number in range(50)) + "PACKAGES: timm>=1.0.22 (missing)\n"]
    with pytest.raises(
        UserError, match=r"line 49\n  PACKAGES: timm>=1.0.22 \(missing\)\n  \[exit code 1\]"
    ) as error:
        pushing()
    assert "line 20" not in str(error.value)
    assert (folder / "output/version-1.log").read_text().startswith("line 0\n")
    assert len(server.kernels[owned("glyphs-digits")]) == 1


def test_a_run_cancelled_by_its_time_limit_has_a_log_that_is_cut(
    server: CodeServer, pushing: Pushing
) -> None:
    server.runs, server.outputs = [[{"status": "CANCEL_ACKNOWLEDGED"}]], [[]]
    server.logs = [
        '[{"stream_name":"stdout","time":1.5,"data":"320 of 9,000 images\\n"},{"stream_name":"stdo'
    ]
    with pytest.raises(
        UserError, match=r"320 of 9,000 images\n  \[it was cancelled \(cancel_acknowledged\), .*time was up"
    ):
        pushing()


def test_a_run_that_wrote_no_file_is_not_submitted(server: CodeServer, pushing: Pushing) -> None:
    server.outputs = [["other.csv"]]
    with pytest.raises(UserError, match=r"\[it ended without writing submission.csv\]"):
        pushing()
    assert not server.asked("CreateCodeSubmission")


def test_a_submission_rejected_with_exit_code_0(server: CodeServer, pushing: Pushing) -> None:
    server._submit = lambda body: {
        "message": "Your Notebook cannot use internet access in this competition.",
        "ref": 0,
    }
    with pytest.raises(
        UserError,
        match=r"did not confirm the submission.*cannot use internet access(.|\n)*most likely not submitted",
    ):
        pushing()
    assert rows() == []


def test_a_scoring_error_gives_kaggles_reason(server: CodeServer, pushing: Pushing) -> None:
    server.scoring = [{"status": "ERROR", "errorDescription": "Notebook Timeout"}]
    with pytest.raises(UserError, match=r": Notebook Timeout"):
        pushing()
    assert [row["status"] for row in rows()] == ["error"]


def test_what_you_have_under_these_names_is_left_as_it_is(server: CodeServer, pushing: Pushing) -> None:
    server.kernels[owned("glyphs-digits")] = [{}]
    with pytest.raises(UserError, match=r"someone/glyphs-digits .*this run"):
        pushing()
    assert len(server.kernels[owned("glyphs-digits")]) == 1
    server.datasets[owned("glyphs-digits-bundle")] = [{}]
    Stages(pushing.folder).forget("dataset")
    with pytest.raises(
        UserError, match="you have a dataset someone/glyphs-digits-bundle that was not made from"
    ):
        pushing()
    assert server.datasets[owned("glyphs-digits-bundle")] == [{}]


def test_a_push_that_was_cut_off_is_not_repeated_blindly(
    server: CodeServer, pushing: Pushing, folder: Path
) -> None:
    code = sha256(folder / "kernel/kernel.py")
    Stages(folder).note("kernel", ref=NAMES.kernel, of=code, state="sending", time="then")
    with pytest.raises(
        UserError, match=r"someone/glyphs-digits was pushed.*remove \"kernel\" from .*stages\.json"
    ):
        pushing()
    assert not server.kernels


def test_kaggle_that_does_not_answer_for_a_while_is_asked_again(
    server: CodeServer, pushing: Pushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [
        remote.KaggleError("busy", passing=True),
        remote.KaggleError("busy", passing=True, retry_after=77.0),
    ]
    ask = remote.kernel_status

    def status(kernel: str) -> remote.Status | None:
        if server.kernels and answers:
            raise answers.pop(0)
        return ask(kernel)

    monkeypatch.setattr(remote, "kernel_status", status)
    pushing()
    assert not answers and 77.0 in pushing.sleeps


# ---- before anything is sent ----


def test_the_account_is_the_tokens(server: CodeServer) -> None:
    assert signed_in_owner(None) == "someone"
    with pytest.raises(UserError, match=r"--owner stranger: .*someone"):
        signed_in_owner("stranger")


def test_a_kaggle_command_that_is_too_old_is_one_message(
    server: CodeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = cli.call
    old = "Kaggle API 1.8.3"
    monkeypatch.setattr(
        cli,
        "call",
        lambda arguments, **more: call(arguments, **more) if arguments != ["--version"] else _printed(old),
    )
    with pytest.raises(UserError, match=r"1\.8\.4 .*found 1\.8\.3.*pip install --upgrade"):
        signed_in_owner(None)
    assert server.calls == []


def _printed(text: str) -> object:
    from pipeline.kaggle.reply import read_reply

    return read_reply(0, text, "")


def test_without_a_token_nothing_is_sent(server: CodeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match=r"nothing was sent to Kaggle:\n.*no Kaggle token"):
        signed_in_owner(None)


def test_a_damaged_memory_of_what_was_pushed_is_one_message(folder: Path) -> None:
    (folder / "stages.json").write_text("[1]")
    with pytest.raises(UserError, match=r"stages\.json .*damaged(.|\n)*found \[1\]"):
        Stages(folder)


def test_one_command_from_a_run_to_a_score(
    server: CodeServer,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole command; only the rehearsal, which tests/test_kernel.py holds, is played."""

    def rehearsed(folder: Path, *_: object) -> rehearsal.Rehearsed:
        folder.mkdir()
        (folder / "submission.csv").write_text("id,label\n")
        return rehearsal.Rehearsed(folder / "submission.csv", 5.0, "1 MB", ("well",))

    monkeypatch.setattr(make, "rehearse", rehearsed)
    monkeypatch.chdir(tmp_path)
    flags = [
        *("--model", str(finished_run / "run"), "--data", str(finished_run / "data")),
        *("--output", str(tmp_path / "kernel")),
    ]
    flags += ["--competition", "glyphs", "--push", "--yes", "--accelerator", "none"]
    assert make.main(flags, sleep=lambda _: None) == 0
    assert "public score      0.5" in capsys.readouterr().out
    (kernel,) = next(iter(server.kernels.values()))
    assert (
        kernel["enableGpu"] is False and not kernel.get("machineShape") and kernel["enableInternet"] is False
    )
