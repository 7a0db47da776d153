"""Run the stages on Kaggle: dataset, kernel, submission, score. stages.json records them, so no stage is done
twice.
"""

from __future__ import annotations

import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import Interrupted, UserError, raise_all
from pipeline.files import checked_copy, human_time, sha256, write_text
from pipeline.folds.team import Team
from pipeline.kaggle import cli
from pipeline.kaggle.ledger import LEDGER, read_ledger
from pipeline.kaggle.preflight import Plan, default_message
from pipeline.kaggle.reply import KaggleError
from pipeline.kaggle.submit import submit
from pipeline.kaggle.token import scrub
from pipeline.kernel import remote
from pipeline.kernel.bundle import Bundle
from pipeline.kernel.carried import MANIFEST, check_bundle
from pipeline.kernel.slugs import KERNEL_METADATA, Names, check_kernel
from pipeline.kernel.stages import Stages
from pipeline.submission.origin import find_origin

SUBMISSION = "submission.csv"
TRIES = 2  # a new kernel's first run may start before its data are mounted
BEGAN_TOO_EARLY = (
    "NOT MOUNTED",
    "ANOTHER VERSION of the bundle",
    "FileNotFoundError: [Errno 2] No such file or directory: '/kaggle/input",
)
QUEUE_HOURS = 2.0  # waiting time for a machine, in addition to the time limit
LOG_LINES = 20
# checks for a new dataset; if the quota is exceeded it never appears (Kaggle/kaggle-cli#284)
ABSENT_LOOKS = 30
PATIENCE = 5  # attempts when Kaggle does not answer
AGAIN = "`make kernel` with PUSH=1 again"
Sleep = Callable[[float], None]


def signed_in_owner(asked: str | None) -> str:
    """Return the account that is signed in.

    Raises:
        UserError: no token, no kaggle command or one too old, or another account than `asked`.
    """
    raise_all(cli.not_ready(), "nothing was sent to Kaggle:")
    remote.check_version()
    owner = remote.signed_in_as()
    if asked and asked.lower() != owner.lower():
        raise UserError(
            f"--owner {asked}: the token belongs to {owner}; kernels of other accounts are not changed"
        )
    return owner


def push(
    folder: Path,
    bundle: Bundle,
    code_file: Path,
    names: Names,
    competition: str,
    team: Team,
    stages: Stages,
    args: Namespace,
    script: str,
    sleep: Sleep = time.sleep,
) -> None:
    """Send the rehearsed bundle and kernel, run it on Kaggle, submit its file and print the score.

    Finished stages are skipped. `script`: the digest of the code file that was rehearsed.

    Raises:
        UserError: the bundle or the code file has changed since the rehearsal, Kaggle refused, or the kernel
            failed there; the message shows the end of its log.
        Interrupted: waiting for the run or the score was cut short.
    """
    for attempt in range(1, TRIES + 1):
        _send_dataset(bundle, names, stages, args.poll_seconds, sleep)
        version = _push_kernel(code_file, script, names, competition, stages, args, sleep)
        log = _wait_for_kernel(folder, names, version, stages, args, sleep)
        if log is None:
            break
        if attempt == TRIES or not any(sign in log for sign in BEGAN_TOO_EARLY):
            _raise_failed(folder, names, version, stages, log)
        print(
            f"kernel     version {version} started before its data were mounted; pushing once more",
            flush=True,
        )
        stages.forget("kernel")
        sleep(3 * args.poll_seconds)
    _submit(folder, code_file, script, names, version, competition, team, args, sleep)


def _send_dataset(bundle: Bundle, names: Names, stages: Stages, pause: float, sleep: Sleep) -> None:
    known = stages.get("dataset")
    if (
        known.get("of") == bundle.digest
        and known.get("ref") == names.dataset
        and known.get("state") == "ready"
    ):
        print(f"dataset    {names.dataset}: ready since {known.get('time')}")
        return
    status = remote.dataset_status(names.dataset)
    ours = known.get("ref") == names.dataset
    if status is not None and not ours:
        raise UserError(
            f"you have a dataset {names.dataset} that was not made from {bundle.folder}; it is not changed: "
            "give this kernel another name, --name NAME"
        )
    begun = ours and known.get("of") == bundle.digest and status is not None
    if not begun:
        _check_unchanged(bundle, "nothing was sent")
        message = None if status is None else f"bundle {bundle.digest[:12]}"
        line = cli.StatusLine()
        stages.note(
            "dataset",
            ref=names.dataset,
            of=bundle.digest if status is None else "",
            state="sending",
            time=_now(),
        )
        try:
            remote.send_dataset(
                bundle.folder, names.dataset, message, tick=lambda: line.show("sending the bundle ...")
            )
        except KaggleError as error:
            if not error.sent and status is None:
                stages.forget("dataset")
            raise
        finally:
            line.close()
        try:
            _check_unchanged(bundle, f"{names.dataset} may hold a mixture, and no kernel uses it")
        except UserError:  # sent again next time
            stages.note("dataset", ref=names.dataset, of="", state="sent", time=_now())
            raise
        print(
            f"dataset    {names.dataset}: sent, private{'' if status is None else ', as a new version'}",
            flush=True,
        )
        stages.note("dataset", ref=names.dataset, of=bundle.digest, state="sent", time=_now())
        if status is not None:
            sleep(pause)  # until then the status may still be that of the earlier version
    _wait_until_ready(names.dataset, pause, sleep)
    stages.note("dataset", ref=names.dataset, of=bundle.digest, state="ready", time=_now())


def _check_unchanged(bundle: Bundle, so: str) -> None:
    """Check that the files of the bundle are those that were rehearsed. `so`: what follows if not.

    Raises:
        UserError: they are not; the changed files are listed.
    """
    try:
        check_bundle(bundle.folder)
        if sha256(bundle.folder / MANIFEST) != bundle.digest:
            raise UserError(f"{bundle.folder / MANIFEST}: another bundle")
    except UserError as error:
        raise UserError(
            f"the bundle was changed after the rehearsal; {so}: run the same command again\n{error}"
        ) from None


def _wait_until_ready(dataset: str, pause: float, sleep: Sleep) -> None:
    line, absent, page = cli.StatusLine(), 0, f"https://www.kaggle.com/datasets/{dataset}"
    try:
        while (status := _patiently(lambda: remote.dataset_status(dataset), sleep)) != "ready":
            absent = absent + 1 if status is None else 0
            if absent > ABSENT_LOOKS:
                raise UserError(
                    f"Kaggle accepted the dataset {dataset}, but it does not appear: most often the "
                    f"account's space for private datasets is full. See {page} and "
                    "https://www.kaggle.com/settings, delete old datasets, then run the same command"
                )
            if status in ("failed", "deleted"):
                raise UserError(f"Kaggle could not make the dataset {dataset} ({status}): see {page}")
            line.show(f"waiting for the dataset ({status or 'not there yet'})")
            sleep(pause)
    except KeyboardInterrupt:
        raise Interrupted("interrupted while waiting for the dataset; the same command continues") from None
    finally:
        line.close()


def _push_kernel(
    code_file: Path,
    content: str,
    names: Names,
    competition: str,
    stages: Stages,
    args: Namespace,
    sleep: Sleep,
) -> int:
    """Return the version whose code file has the digest `content`, with its metadata and the accelerator;
    push it if there is none.
    """
    known = stages.get("kernel")
    settings = f"{sha256(code_file.with_name(KERNEL_METADATA))} {args.accelerator}"
    page = f"https://www.kaggle.com/code/{names.kernel}"
    ours = known.get("ref") == names.kernel
    if ours and known.get("of") == content and known.get("state") == "refused":
        known = {}  # that version ran without its data: push another
    if known.get("version") and known.get("settings", settings) != settings:
        known = {}  # it ran with other metadata, or on other hardware
    if ours and known.get("of") == content and known.get("version"):
        print(f"kernel     {names.kernel} version {known['version']}: pushed at {known.get('time')}")
        return int(known["version"])
    if ours and known.get("of") == content and known.get("state") == "sending":
        raise UserError(
            f"it is unknown whether {names.kernel} was pushed, because an earlier push was interrupted: "
            f'check {page}. If its newest version is there, submit it by hand; if not, remove "kernel" from '
            f"{stages.path}, then the same command pushes it"
        )
    if (
        not ours
        and not stages.get("kernels").get(names.base)
        and remote.kernel_status(names.kernel) is not None
    ):
        raise UserError(
            f"you have a kernel {names.kernel} that this run did not make ({page}); it is not changed: set "
            "another name with --name NAME"
        )
    try:
        with checked_copy(code_file, content) as copy:
            shutil.copyfile(code_file.parent / KERNEL_METADATA, copy.parent / KERNEL_METADATA)
            check_kernel(copy.parent, names, competition)
            stages.note("kernel", ref=names.kernel, of=content, state="sending", time=_now())
            version = remote.push_kernel(
                copy.parent, names.kernel, round(args.hours * 3600), args.accelerator
            )
    except KaggleError as error:
        if "without what it needs" in str(error):
            stages.note("kernel", ref=names.kernel, of=content, state="refused", time=_now())
            stages.note("kernels", **{names.base: True})
        elif not error.sent:
            stages.forget("kernel")
        raise
    stages.note(
        "kernel",
        ref=names.kernel,
        of=content,
        settings=settings,
        state="pushed",
        version=version,
        time=_now(),
    )
    stages.note("kernels", **{names.base: True})
    print(f"kernel     {names.kernel} version {version}: pushed, {page}", flush=True)
    sleep(args.poll_seconds)  # until then the status may still be that of the earlier version
    return version


def _wait_for_kernel(
    folder: Path, names: Names, version: int, stages: Stages, args: Namespace, sleep: Sleep
) -> str | None:
    """Wait for the run on Kaggle's visible test set.

    Returns None if it completed and wrote its file; else its log.
    """
    known = stages.get("kernel")
    if known.get("state") == "complete":
        return None
    line, start = cli.StatusLine(), time.monotonic()
    try:
        while True:
            status = _patiently(lambda: remote.kernel_status(names.kernel), sleep)
            if status and status.word in remote.ENDED:
                break
            elapsed = time.monotonic() - start
            if elapsed > (args.hours + QUEUE_HOURS) * 3600:
                raise Interrupted(
                    f"{names.kernel} has not ended after {human_time(elapsed)}; the same command continues "
                    "to wait"
                )
            line.show(
                f"running on Kaggle: {status.word if status else 'not there yet'} ({human_time(elapsed)})"
            )
            sleep(args.poll_seconds)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; {names.kernel} still runs on Kaggle, and the same command continues to wait for it"
        ) from None
    finally:
        line.close()
    files, log = _patiently(
        lambda: remote.fetch_output(names.kernel, folder / "output" / f"version-{version}"), sleep
    )
    write_text(folder / "output" / f"version-{version}.log", log)
    if status.word == "complete" and SUBMISSION in files:
        stages.note("kernel", **known | {"state": "complete"})
        print(f"kernel     version {version} is complete and wrote {SUBMISSION}", flush=True)
        return None
    reason = (
        f"it ended without writing {SUBMISSION}"
        if status.word == "complete"
        else status.failure or status.word
    )
    if status.word.startswith("cancel"):
        reason = f"it was cancelled ({status.word}), most often because time was up; then its log is cut off"
    return f"{log.rstrip()}\n[{reason}]"


def _raise_failed(folder: Path, names: Names, version: int, stages: Stages, log: str) -> None:
    known = stages.get("kernel")
    stages.note("kernel", **known | {"state": "refused"})  # the same command will push a new version
    tail = "\n".join(f"  {line}" for line in scrub(log).splitlines()[-LOG_LINES:])
    raise UserError(
        f"version {version} of {names.kernel} failed on Kaggle, nothing was submitted. The end of its log "
        f"({folder / 'output' / f'version-{version}.log'}):\n{tail}"
    )


def _submit(
    folder: Path,
    code_file: Path,
    script: str,
    names: Names,
    version: int,
    competition: str,
    team: Team,
    args: Namespace,
    sleep: Sleep,
) -> None:
    """Submit the version's file and wait for its score on the hidden test set.

    The ledger stores `script`, the digest of the version's code file.
    """
    origin = find_origin(folder / "rehearsal" / SUBMISSION)
    parts = [
        default_message(origin, code_file) if origin else " + ".join(one.name for one in team.named),
        f"kernel version {version}",
    ]
    message = " ".join(scrub(args.message or ", ".join(parts)).split())
    sent = [
        row["status"]
        for row in read_ledger(LEDGER)[1]
        if (row["competition"], row["file_sha256"]) == (competition, script)
    ]
    send = partial(cli.upload_kernel, competition, names.kernel, version, SUBMISSION, message)
    plan = Plan(
        competition,
        code_file,
        script,
        message,
        origin.score if origin else "",
        origin,
        send,
        AGAIN,
    )
    print(f"message    {message}", flush=True)
    timeout_s = (args.hours + QUEUE_HOURS) * 3600
    yes = args.yes and "pending" not in sent  # do not resend a file that Kaggle is still scoring
    submit(plan, yes=yes, poll_seconds=args.poll_seconds, timeout_s=timeout_s, sleep=sleep)


def _patiently(ask: Callable[[], Any], sleep: Sleep) -> Any:
    """Return the answer to a read-only request; temporary failures are retried."""
    for attempt in range(1, PATIENCE + 1):
        try:
            return ask()
        except KaggleError as error:
            if not error.passing or attempt == PATIENCE:
                raise
            sleep(error.retry_after if error.retry_after is not None else 10.0 * attempt)
    raise AssertionError("the last attempt returns or raises")


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
