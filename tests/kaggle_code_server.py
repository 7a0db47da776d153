"""The part of Kaggle's API that code competitions need: datasets, kernels that run, submissions of a kernel's
version.
"""

from __future__ import annotations

import io
import json
import zipfile
from datetime import UTC, datetime
from typing import Any

from kaggle_server import USER, Answer, KaggleServer

Step = dict[str, Any]
COMPLETE: Step = {"status": "COMPLETE"}


class CodeServer(KaggleServer):
    """What Kaggle knows: `datasets` and `kernels` by owner/slug, each a list of its versions. What happens to
    a run: `runs`, a list of steps for each version pushed, one step a look; the last one stays. `logs`,
    `outputs`: of each version.
    """

    def __init__(self) -> None:
        super().__init__()
        self.datasets: dict[str, list[Step]] = {}
        self.kernels: dict[str, list[Step]] = {}
        self.blobs: dict[str, str] = {}
        self.dataset_steps = ["READY"]
        self.runs: list[list[Step]] = [[COMPLETE]]
        self.logs: list[str] = ["all is well\n"]
        self.outputs: list[list[str]] = [["submission.csv"]]
        self.save_answer: Step = {}
        self.dataset_answer: Step = {}

    def other(self, method: str, body: dict[str, Any]) -> Answer:
        known = {
            "StartBlobUpload": self._start_blob,
            "CreateDataset": lambda body: self._dataset(f"{body['ownerSlug']}/{body['slug']}", body),
            "CreateDatasetVersion": lambda body: self._dataset(
                f"{body['ownerSlug']}/{body['datasetSlug']}", body["body"]
            ),
            "SaveKernel": self._save,
            "CreateCodeSubmission": self._submit,
        }
        if method in known:
            return 200, known[method](body), {}
        if method == "GetDatasetStatus":
            ref = f"{body['ownerSlug']}/{body['datasetSlug']}"
            return (
                (200, {"status": self._next(self.dataset_steps)}, {})
                if ref in self.datasets
                else self._denied("datasets.get")
            )
        if method in ("GetKernelSessionStatus", "ListKernelSessionOutput"):
            ref = f"{body['userName']}/{body['kernelSlug']}"
            if ref not in self.kernels:
                return self._denied("kernels.get")
            number = min(len(self.kernels[ref]), len(self.runs)) - 1
            return (
                200,
                self._next(self.runs[number])
                if method == "GetKernelSessionStatus"
                else self._output(len(self.kernels[ref]) - 1),
                {},
            )
        return super().other(method, body)

    def _denied(self, what: str) -> Answer:
        """As Kaggle says it of what is not there and of what is somebody else's."""
        return 403, {"code": 403, "message": f"Permission '{what}' was denied"}, {}

    def _next(self, steps: list) -> Any:
        return steps.pop(0) if len(steps) > 1 else steps[0]

    def _start_blob(self, body: dict[str, Any]) -> Step:
        token = f"blob-{len(self.blobs)}"
        self.blobs[token] = body["name"]
        return {"token": token, "createUrl": "http://localhost/upload/blob"}

    def _dataset(self, ref: str, body: dict[str, Any]) -> Step:
        if self.dataset_answer:
            return self.dataset_answer
        names = [self.blobs[item["token"]] for item in body["files"]]
        self.datasets.setdefault(ref, []).append(
            {"files": names, "private": body.get("isPrivate"), "title": body.get("title")}
        )
        return {"status": "ok", "url": f"https://www.kaggle.com/datasets/{ref}", "ref": ref}

    def _save(self, body: dict[str, Any]) -> Step:
        if "error" in self.save_answer:
            return self.save_answer
        self.kernels.setdefault(body["slug"], []).append(body)
        return {
            "url": "https://www.kaggle.com/code/x",
            "versionNumber": len(self.kernels[body["slug"]]),
        } | self.save_answer

    def _output(self, version: int) -> Step:
        names, log = (values[min(version, len(values) - 1)] for values in (self.outputs, self.logs))
        pieces = [
            {"stream_name": "stdout", "time": 1.5, "data": line} for line in log.splitlines(keepends=True)
        ]
        files = [{"url": f"{self.address}/output/{name}", "fileName": name} for name in names]
        return {"files": files, "log": json.dumps(pieces) if not log.startswith("[{") else log}

    def _submit(self, body: dict[str, Any]) -> Step:
        self.created = {
            "ref": 9000 + len(self.asked("CreateCodeSubmission")),
            "fileName": body["fileName"],
            "date": datetime.now(UTC).isoformat(),
            "description": body.get("submissionDescription", ""),
            "status": "PENDING",
        }
        return {"message": "Successfully submitted to Glyphs in the Wild", "ref": self.created["ref"]}

    def unpacked(self) -> dict[str, bytes]:
        """The files of the uploaded zips, and what else was uploaded, by their last names."""
        found = {}
        for content in self.uploads:
            if zipfile.is_zipfile(io.BytesIO(content)):
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    found |= {name: archive.read(name) for name in archive.namelist()}
        return found


def owned(name: str) -> str:
    """owner/slug in the account of the tests."""
    return f"{USER}/{name}"
