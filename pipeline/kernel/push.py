"""The stages on Kaggle: dataset, kernel, submission, score. Each is remembered in stages.json, so that it is left and continued, never done twice."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import Interrupted, UserError, raise_all
from pipeline.files import human_time, sha256, write_text
from pipeline.folds.team import Team
from pipeline.kaggle import cli
from pipeline.kaggle.ledger import LEDGER, read_ledger
from pipeline.kaggle.preflight import Plan, default_message
from pipeline.kaggle.reply import KaggleError
from pipeline.kaggle.submit import submit
from pipeline.kaggle.token import scrub
from pipeline.kernel import remote
from pipeline.kernel.bundle import Bundle
from pipeline.kernel.slugs import Names
from pipeline.kernel.stages import Stages
from pipeline.submission.origin import find_origin

SUBMISSION = "submission.csv"
TRIES = 2  # a new kernel's first run may begin before its data are mounted
BEGAN_TOO_EARLY = ("NOT MOUNTED", "ANOTHER VERSION of the bundle", "FileNotFoundError: [Errno 2] No such file or directory: '/kaggle/input")
QUEUE_HOURS = 2.0  # on top of the limit: waiting for a machine
LOG_LINES = 20
ABSENT_LOOKS = 30  # at a dataset that Kaggle said it makes: beyond the quota it is never there (Kaggle/kaggle-cli#284)
PATIENCE = 5  # looks at a Kaggle that does not answer, before giving up
AGAIN = "`make kernel` with PUSH=1 again"
Sleep = Callable[[float], None]


def signed_in_owner(asked: str | None) -> str:
    """The account that everything is made in.

    Raises:
        UserError: no token, no kaggle command or one too old, or another account than the one `asked` for.
    """
    raise_all(cli.not_ready(), "nothing was sent to Kaggle:")
    remote.check_version()
    owner = remote.signed_in_as()
    if asked and asked.lower() != owner.lower():
        raise UserError(f"--owner {asked}: the token is {owner}'s, and another account's kernels are not touched")
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
    sleep: Sleep = time.sleep,
) -> None:
    """Send what was rehearsed, run it on Kaggle, submit its file and print the score. What is done already is not done again.

    Raises:
        UserError: Kaggle refused, or the kernel failed there; the log's last lines are shown.
        Interrupted: the run or the score was not waited for to the end.
    """
    for attempt in range(1, TRIES + 1):
        _send_dataset(bundle, names, stages, args.poll_seconds, sleep)
        version = _push_kernel(folder / "kernel", code_file, names, stages, args, sleep)
        log = _wait_for_kernel(folder, names, version, stages, args, sleep)
        if log is None:
            break
        if attempt == TRIES or not any(sign in log for sign in BEGAN_TOO_EARLY):
            _raise_failed(folder, names, version, stages, log)
        print(f"kernel     version {version} began before its data were mounted; pushing once more", flush=True)
        stages.forget("kernel")
        sleep(3 * args.poll_seconds)
    _submit(folder, code_file, names, version, competition, team, args, sleep)


def _send_dataset(bundle: Bundle, names: Names, stages: Stages, pause: float, sleep: Sleep) -> None:
    known = stages.get("dataset")
    if known.get("of") == bundle.digest and known.get("ref") == names.dataset and known.get("state") == "ready":
        print(f"dataset    {names.dataset}: there since {known.get('time')}")
        return
    status = remote.dataset_status(names.dataset)
    ours = known.get("ref") == names.dataset
    if status is not None and not ours:
        raise UserError(
            f"you have a dataset {names.dataset} that was not made from {bundle.folder}; it is left as it is: give this kernel another name, "
            "--name NAME"
        )
    begun = ours and known.get("of") == bundle.digest and status is not None
    if not begun:
        message = None if status is None else f"bundle {bundle.digest[:12]}"
        line = cli.StatusLine()
        stages.note("dataset", ref=names.dataset, of=bundle.digest if status is None else "", state="sending", time=_now())
        try:
            remote.send_dataset(bundle.folder, names.dataset, message, tick=lambda: line.show("sending the bundle ..."))
        except KaggleError as error:
            if not error.sent and status is None:
                stages.forget("dataset")
            raise
        finally:
            line.close()
        print(f"dataset    {names.dataset}: sent, private{'' if status is None else ', as a new version'}", flush=True)
        stages.note("dataset", ref=names.dataset, of=bundle.digest, state="sent", time=_now())
        if status is not None:
            sleep(pause)  # or the status would still be the former version's
    _wait_until_ready(names.dataset, pause, sleep)
    stages.note("dataset", ref=names.dataset, of=bundle.digest, state="ready", time=_now())


def _wait_until_ready(dataset: str, pause: float, sleep: Sleep) -> None:
    line, absent, page = cli.StatusLine(), 0, f"https://www.kaggle.com/datasets/{dataset}"
    try:
        while (status := _patiently(lambda: remote.dataset_status(dataset), sleep)) != "ready":
            absent = absent + 1 if status is None else 0
            if absent > ABSENT_LOOKS:
                raise UserError(
                    f"Kaggle said that it makes the dataset {dataset}, and there is none: most often the account's space for private "
                    f"datasets is used up. See {page} and https://www.kaggle.com/settings, delete what you need no more, then the same command"
                )
            if status in ("failed", "deleted"):
                raise UserError(f"Kaggle could not make the dataset {dataset} ({status}): see {page}")
            line.show(f"waiting for the dataset ({status or 'not there yet'})")
            sleep(pause)
    except KeyboardInterrupt:
        raise Interrupted("interrupted while waiting for the dataset; the same command goes on") from None
    finally:
        line.close()


def _push_kernel(kernel_dir: Path, code_file: Path, names: Names, stages: Stages, args: Namespace, sleep: Sleep) -> int:
    """The version that holds this very code file; pushed now unless it was."""
    known, content = stages.get("kernel"), sha256(code_file)
    page = f"https://www.kaggle.com/code/{names.kernel}"
    ours = known.get("ref") == names.kernel
    if ours and known.get("of") == content and known.get("state") == "refused":
        known = {}  # a version that ran without its data: another is pushed
    if ours and known.get("of") == content and known.get("version"):
        print(f"kernel     {names.kernel} version {known['version']}: pushed at {known.get('time')}")
        return int(known["version"])
    if ours and known.get("of") == content and known.get("state") == "sending":
        raise UserError(
            f"whether {names.kernel} was pushed is not known, an earlier push was cut off: look at {page}. If its newest version is there, "
            f'submit it by hand; if not, remove "kernel" from {stages.path}, then the same command pushes it'
        )
    if not ours and not stages.get("kernels").get(names.base) and remote.kernel_status(names.kernel) is not None:
        raise UserError(
            f"you have a kernel {names.kernel} that this run did not make ({page}); it is left as it is: --name NAME gives another name"
        )
    stages.note("kernel", ref=names.kernel, of=content, state="sending", time=_now())
    try:
        version = remote.push_kernel(kernel_dir, names.kernel, round(args.hours * 3600), args.accelerator)
    except KaggleError as error:
        if "without what it needs" in str(error):
            stages.note("kernel", ref=names.kernel, of=content, state="refused", time=_now())
            stages.note("kernels", **{names.base: True})
        elif not error.sent:
            stages.forget("kernel")
        raise
    stages.note("kernel", ref=names.kernel, of=content, state="pushed", version=version, time=_now())
    stages.note("kernels", **{names.base: True})
    print(f"kernel     {names.kernel} version {version}: pushed, {page}", flush=True)
    sleep(args.poll_seconds)  # or the status could still be the former version's
    return version


def _wait_for_kernel(folder: Path, names: Names, version: int, stages: Stages, args: Namespace, sleep: Sleep) -> str | None:
    """None when the run on Kaggle's visible test set is complete and wrote its file; else its log."""
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
                raise Interrupted(f"{names.kernel} has not ended after {human_time(elapsed)}; the same command goes on waiting")
            line.show(f"running on Kaggle: {status.word if status else 'not there yet'} ({human_time(elapsed)})")
            sleep(args.poll_seconds)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {names.kernel} goes on running at Kaggle, and the same command goes on waiting for it") from None
    finally:
        line.close()
    files, log = _patiently(lambda: remote.fetch_output(names.kernel, folder / "output" / f"version-{version}"), sleep)
    write_text(folder / "output" / f"version-{version}.log", log)
    if status.word == "complete" and SUBMISSION in files:
        stages.note("kernel", **known | {"state": "complete"})
        print(f"kernel     version {version} is complete: {SUBMISSION} is there", flush=True)
        return None
    reason = f"it ended without writing {SUBMISSION}" if status.word == "complete" else status.failure or status.word
    if status.word.startswith("cancel"):
        reason = f"it was cancelled ({status.word}): most often because its time was up, and then its log is cut off"
    return f"{log.rstrip()}\n[{reason}]"


def _raise_failed(folder: Path, names: Names, version: int, stages: Stages, log: str) -> None:
    known = stages.get("kernel")
    stages.note("kernel", **known | {"state": "refused"})  # the same command tries again with a new version
    tail = "\n".join(f"  {line}" for line in scrub(log).splitlines()[-LOG_LINES:])
    raise UserError(
        f"version {version} of {names.kernel} failed on Kaggle, nothing was submitted. The end of its log "
        f"({folder / 'output' / f'version-{version}.log'}):\n{tail}"
    )


def _submit(folder: Path, code_file: Path, names: Names, version: int, competition: str, team: Team, args: Namespace, sleep: Sleep) -> None:
    """Submit the version's file and wait until Kaggle has run it on the hidden test set. The ledger knows it by the code file's digest."""
    origin = find_origin(folder / "rehearsal" / SUBMISSION)
    parts = [default_message(origin, code_file) if origin else " + ".join(one.name for one in team.named), f"kernel version {version}"]
    message = " ".join(scrub(args.message or ", ".join(parts)).split())
    sent = [row["status"] for row in read_ledger(LEDGER)[1] if (row["competition"], row["file_sha256"]) == (competition, sha256(code_file))]
    send = partial(cli.upload_kernel, competition, names.kernel, version, SUBMISSION, message)
    plan = Plan(competition, code_file, sha256(code_file), message, origin.score if origin else "", origin, send, AGAIN)
    print(f"message    {message}", flush=True)
    timeout_s = (args.hours + QUEUE_HOURS) * 3600
    yes = args.yes and "pending" not in sent  # what Kaggle is still scoring is only waited for
    submit(plan, yes=yes, poll_seconds=args.poll_seconds, timeout_s=timeout_s, sleep=sleep)


def _patiently(ask: Callable[[], Any], sleep: Sleep) -> Any:
    """The answer to a question that changes nothing; passing failures are asked again."""
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
