"""Find the token that the `kaggle` command will use, without showing it, and remove tokens from texts."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

NEW_TOKEN = "https://www.kaggle.com/settings/api"


@dataclass(frozen=True)
class Credentials:
    """A token. `kind` describes its source; empty without one, and then `problem` says why.

    `secrets` are never shown.
    """

    kind: str
    problem: str
    secrets: tuple[str, ...] = field(repr=False)


AROUND = "'\" \t\r\n"  # never part of a user name or key


def find_credentials(environment: Mapping[str, str] | None = None) -> Credentials:
    """Find the token as the `kaggle` command does: in the same places, in the same order."""
    environment = os.environ if environment is None else environment
    home = Path.home() / ".kaggle"
    problems: list[str] = []
    found: list[tuple[str, tuple[str, ...]]] = []

    in_notebook = "KAGGLE_KERNEL_RUN_TYPE" in environment and "KAGGLE_DATA_PROXY_URL" in environment
    if in_notebook and (token := _token_file(environment.get("KAGGLE_API_V1_TOKEN"))):
        found.append(("the token of this Kaggle notebook", (token,)))
    if value := environment.get("KAGGLE_API_TOKEN"):
        # The variable may hold the token or the path of a file with it.
        found.append(("API token from KAGGLE_API_TOKEN", (_token_file(value) or value,)))
    for path in (home / "access_token", home / "access_token.txt"):
        if token := _token_file(path):
            found.append((f"API token from {path}", (token,)))

    key_path = _config_dir(environment) / "kaggle.json"
    stored, problem = _stored_key(key_path)
    problems += [problem] if problem else []
    user = environment.get("KAGGLE_USERNAME") or stored.get("username")
    key = environment.get("KAGGLE_KEY") or stored.get("key")
    if user and key:
        source = "KAGGLE_USERNAME and KAGGLE_KEY" if environment.get("KAGGLE_KEY") else str(key_path)
        login = base64.b64encode(f"{user}:{key}".encode()).decode()
        found.append((f"user name and key from {source}", (key, login)))
    elif user or key:
        missing = "KAGGLE_KEY" if user else "KAGGLE_USERNAME"
        problems.append(
            f"KAGGLE_USERNAME and {key_path} give only half of user name and key: {missing} is missing"
        )

    signed_in, problem = _stored_key(home / "credentials.json")
    problems += [problem] if problem else []
    if refresh := signed_in.get("refresh_token"):
        found.append(("`kaggle auth login`", (refresh, signed_in.get("access_token") or "")))

    old_key = not found or found[0][0].startswith("user name")
    misplaced = old_key and (
        _misplaced(environment, key_path, key) or _quoted(environment, key_path, user, key)
    )
    if misplaced := misplaced or _malformed(
        environment, home, key_path if old_key and not environment.get("KAGGLE_KEY") else None
    ):
        secrets = tuple(secret for _, values in found for secret in values)
        return Credentials(
            "", f"the Kaggle token has a wrong form: {misplaced}", (*secrets, *((key,) if key else ()))
        )
    if found:
        return Credentials(found[0][0], "", tuple(secret for _, secrets in found for secret in secrets))
    reason = (
        "; ".join(problems)
        or "none in KAGGLE_API_TOKEN, KAGGLE_USERNAME and KAGGLE_KEY, ~/.kaggle/access_token or kaggle.json"
    )
    advice = f"create one at {NEW_TOKEN} and save it as {home / 'access_token'} (or run `kaggle auth login`)"
    return Credentials("", f"no Kaggle token: {reason}; {advice}", tuple(value for value in (key,) if value))


def _misplaced(environment: Mapping[str, str], key_path: Path, key: str | None) -> str:
    """Return the problem and the command that fixes it if a new token (KGAT_...) is stored as an old key;
    else "".
    """
    if not (key or "").strip("'\" ").startswith("KGAT_"):
        return ""
    if environment.get("KAGGLE_KEY"):
        return (
            "KAGGLE_KEY holds an API token; it belongs in KAGGLE_API_TOKEN: export "
            'KAGGLE_API_TOKEN="$KAGGLE_KEY"; unset KAGGLE_KEY'
        )
    path, target = quote(str(key_path)), quote(str(Path.home() / ".kaggle" / "access_token"))
    take = f"{quote(sys.executable)} -c 'import json,sys; print(json.load(open(sys.argv[1]))[\"key\"])'"
    return (
        f"{key_path} holds an API token as its key; it belongs in its own file: {take} {path} > {target} "
        f"&& rm {path}"
    )


def _quoted(environment: Mapping[str, str], key_path: Path, user: str | None, key: str | None) -> str:
    """Return the problem and the command that fixes it if user name or key contain quotes or spaces; else
    "".
    """
    parts = {"KAGGLE_USERNAME": user or "", "KAGGLE_KEY": key or ""}
    wrong = [name for name, value in parts.items() if value != value.strip(AROUND)]
    for name in wrong:
        if environment.get(name):
            return (
                f'{name} has quotes or spaces around it: export {name}=$(printf %s "${name}" | tr -d '
                "'\"'\\'' ')"
            )
    if not wrong:
        return ""
    take = (
        'p = sys.argv[1]; v = json.load(open(p)); json.dump({k: x.strip("\\x22\\x27 ") for k, x in '
        'v.items()}, open(p, "w"))'
    )
    command = f"{quote(sys.executable)} -c 'import json, sys; {take}' {quote(str(key_path))}"
    return f"{key_path} has quotes or spaces inside its user name or key: {command}"


def _malformed(environment: Mapping[str, str], home: Path, key_path: Path | None) -> str:
    """Return the problem and the command that fixes it if a token is stored in a wrong form; else "".

    `key_path`: kaggle.json, if its key is the one used.
    """
    value = environment.get("KAGGLE_API_TOKEN", "")
    if len(value.split()) > 1:
        one = "printf %s \"$KAGGLE_API_TOKEN\" | grep -om1 'KGAT_[A-Za-z0-9_]*'"
        return f"KAGGLE_API_TOKEN holds more than the token: export KAGGLE_API_TOKEN=$({one})"
    if value.strip() != value or (value[:1] in "'\"" and value):
        return (
            "KAGGLE_API_TOKEN has quotes or spaces around it: export KAGGLE_API_TOKEN=$(printf %s "
            "\"$KAGGLE_API_TOKEN\" | tr -d '\"'\\'' ')"
        )
    for path in (home / "access_token", home / "access_token.txt", *([key_path] if key_path else ())):
        try:
            data = path.read_bytes()[:10_000] if path.is_file() else b""
        except OSError:
            continue
        file = quote(str(path))
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return f"{path} is UTF-16: iconv -f UTF-16 -t UTF-8 {file} > {file}.new && mv {file}.new {file}"
        if data.startswith(b"\xef\xbb\xbf"):
            return f"{path} begins with a byte order mark: sed -i '1s/^\\xEF\\xBB\\xBF//' {file}"
        text = data.strip()
        if path == key_path:
            continue
        if text.startswith(b"export ") or b"KAGGLE_API_TOKEN=" in text:
            return f"{path} holds a shell line instead of the token alone: sed -i 's/.*=//' {file}"
        if text[:1] in (b"'", b'"'):
            return f'{path} has quotes around the token: sed -i "s/[\\"\']//g" {file}'
        if len(text.split()) > 1:
            return (
                f"{path} holds more than the token: grep -om1 'KGAT_[A-Za-z0-9_]*' {file} > {file}.new && "
                f"mv {file}.new {file}"
            )
    return ""


def _config_dir(environment: Mapping[str, str]) -> Path:
    """Return the folder where the command looks for kaggle.json."""
    if environment.get("KAGGLE_CONFIG_DIR"):
        return Path(environment["KAGGLE_CONFIG_DIR"])
    home = Path.home() / ".kaggle"
    if sys.platform.startswith("linux") and not home.exists():
        return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kaggle"
    return home


def _token_file(path: str | Path | None) -> str:
    """The stripped text of a token file; empty when there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _stored_key(path: Path) -> tuple[dict[str, str], str]:
    """Return the text fields of a JSON file of the command, and its problem ("" if it is fine or does not
    exist).
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        # A decoding error may quote the file, and the file holds a key.
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON"
        return {}, f"{path} cannot be read ({reason})"
    if not isinstance(values, dict):
        return {}, f"{path} is not a JSON object as Kaggle's settings page gives it"
    return {name: value for name, value in values.items() if isinstance(value, str)}, ""


def scrub(text: str) -> str:
    """Replace all known tokens in `text`, and everything that looks like one, by ***."""
    named = [
        value
        for name, value in os.environ.items()
        if name.startswith("KAGGLE_") and name.endswith(("KEY", "TOKEN"))
    ]
    secrets = [part for secret in (*find_credentials().secrets, *named) for part in (secret, *secret.split())]
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 8:
            text = text.replace(secret, "***")
    text = re.sub(r"(?i)(authorization\W{1,4}(?:basic|bearer)?\s*)[^\s'\",]+", r"\1***", text)
    text = re.sub(r"(?<=://)[^\s/@:]+:[^\s/@]+@", "***@", text)
    return re.sub(r"KGAT_\w+", "***", text)  # without \b: an escaped line break may stand before it
