"""From what a person wrote to the one frozen `Config`: flags over LEDGERD_* over credentials over a TOML file over the
defaults.

Rules of this file:

- An unknown key is refused wherever it stands, with the nearest known one named: a typo in a limit must not pass.
- Every value remembers where it came from, and every complaint says so.
- All problems are reported at once.
- Secrets are masked wherever a setting is shown. A data source name keeps everything but its password.
- A credential is a file in $CREDENTIALS_DIRECTORY that is named after a setting. Other people's files there are left
  alone.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ledgerd.addresses import is_loopback, networks
from ledgerd.config import Config, SettingsError
from ledgerd.masking import without_secrets
from ledgerd_protocol.money import iso_scale

PREFIX = "LEDGERD_"

NOT_SETTINGS = frozenset({"CA_FILE", "CONFIG", "TOKEN", "URL", "OWNER_DSN"})
"""Variables with the prefix that commands read themselves."""

FLAGS = ("dsn", "listen", "http")
"""Settings that are flags of their own; all others are given with --set."""

_KUBERNETES = re.compile(r"LEDGERD_(SERVICE_|PORT$|PORT_\d)")
"""What Kubernetes puts into every container beside a service that is called ledgerd. Not meant for us."""

CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""The variable in which systemd says where a service's credentials are."""

CREDENTIAL_PREFIX = "ledgerd_"
"""A credential may carry it. systemd puts it before those of `LoadCredential=ledgerd:DIRECTORY`."""

_NAMES_OF_FILES = frozenset({"tls_certificate", "tls_key"})
"""Settings whose value is a path: the credential is that file."""

_FIELDS = {field.name: field for field in msgspec.structs.fields(Config)}

_SIGN_UP_SCOPES = ("read", "user", "topup")
_LOG_LEVELS = ("debug", "info", "warning", "error")
_MASK = "***"


class Settings(Struct, frozen=True):
    """The configuration in force, and for every name where its value came from."""

    config: Config
    sources: dict[str, str]

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value as text with secrets masked, and source of every setting, in the order of `Config`."""
        return [(name, _shown(name, getattr(self.config, name)), self.sources[name]) for name in _FIELDS]


def load(flags: Mapping[str, str | None], environ: Mapping[str, str], file: Path | None = None) -> Settings:
    """Read all sources. ``flags`` maps setting names to text; None is a flag that was not given.

    Raises SettingsError.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources = dict.fromkeys(_FIELDS, "default")
    for where, raw, written_as_text in (
        ("file", _from_file(file, problems), False),
        ("credential", _from_credentials(environ, problems), True),
        ("environment", _from_environment(environ, problems), True),
        ("flag", _from_flags(flags, problems), True),
    ):
        for name, value in raw.items():
            try:
                values[name] = _converted(name, value, written_as_text=written_as_text)
            except ValueError as error:
                problems.append(f"{_spelled(name, where, file)} {error}")
            sources[name] = where if file is None or where != "file" else f"file {file}"
    if problems:
        raise SettingsError(problems)
    config = Config(**values)
    problems = _contradictions(config)
    if problems:
        raise SettingsError(problems)
    return Settings(config, sources)


# -- sources -------------------------------------------------------------------------------------------------------


def _from_file(file: Path | None, problems: list[str]) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        found = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        problems.append(f"{file}: cannot be read ({error.strerror or error})")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"{file}: is not TOML ({error})")
        return {}
    return _known(found, f"{file}: ", str, problems)


def _from_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    found = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in NOT_SETTINGS and not _KUBERNETES.match(name)
    }
    return _known(found, "environment: ", lambda name: PREFIX + name.upper(), problems)


def _from_credentials(environ: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    if not (directory := environ.get(CREDENTIALS)):
        return {}
    found: dict[str, str] = {}
    try:
        for file in sorted(Path(directory).iterdir()):
            name = file.name.removeprefix(CREDENTIAL_PREFIX)
            if name in _NAMES_OF_FILES:
                found[name] = str(file)
            elif name in _FIELDS or name != file.name:  # one that is ours by its prefix must be a setting
                found[name] = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{CREDENTIALS}: {directory} cannot be read ({getattr(error, 'strerror', error)})")
    return _known(found, "credential ", lambda name: CREDENTIAL_PREFIX + name, problems)


def _from_flags(flags: Mapping[str, str | None], problems: list[str]) -> dict[str, Any]:
    given = {name.replace("-", "_"): value for name, value in flags.items() if value is not None}
    return _known(given, "", lambda name: f"--set {name}", problems)


def _known(found: Mapping[str, Any], where: str, spell: Any, problems: list[str]) -> dict[str, Any]:
    known: dict[str, Any] = {}
    for name, value in found.items():
        if name in _FIELDS:
            known[name] = value
            continue
        near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.5)
        hint = f"; did you mean {spell(near[0])}?" if near else "; `ledgerd config` lists all settings"
        problems.append(f"{where}{spell(name)} is not a setting{hint}")
    return known


def _spelled(name: str, where: str, file: Path | None) -> str:
    return {
        "file": f"{file}: {name}",
        "credential": f"credential {name}",
        "environment": PREFIX + name.upper(),
        "flag": f"--{name}" if name in FLAGS else f"--set {name}",
    }[where]


# -- values --------------------------------------------------------------------------------------------------------


def _converted(name: str, value: Any, *, written_as_text: bool) -> Any:
    """The value in its type and range. Raises ValueError with a sentence that says what it must be."""
    kind = _FIELDS[name].type
    if written_as_text:
        value = _split(name, value)
    try:
        return msgspec.convert(value, type=kind, strict=not written_as_text)
    except msgspec.ValidationError as error:
        shown = _MASK if name == "dsn" else repr(value)
        raise ValueError(f"is {shown}: {_plain(str(error))}") from None


def _split(name: str, text: str) -> Any:
    """Lists are written a,b,c and tables A=1,B=2 where only text can be written."""
    default = _FIELDS[name].default
    members = [member.strip() for member in text.split(",") if member.strip()]
    if isinstance(default, tuple):
        return members
    if name == "currencies":
        return {member.partition("=")[0].strip(): member.partition("=")[2].strip() for member in members}
    return text.strip()


def _plain(sentence: str) -> str:
    """msgspec's words for types, in a person's."""
    sentence = sentence.replace("`", "").partition(" - at")[0]
    for word, plain in (("int", "whole number"), ("float", "number"), ("bool", "true or false"), ("str", "text")):
        sentence = re.sub(rf"\b{word}\b", plain, sentence)
    return sentence[:1].lower() + sentence[1:]


def _contradictions(config: Config) -> list[str]:
    """What is wrong though every value alone is well formed."""
    problems: list[str] = []
    for name, address in (("listen", config.listen), ("http", config.http)):
        try:
            host, _ = host_and_port(address)
        except ValueError as error:
            problems.append(f"{name} is {address!r}: {error}")
            continue
        if name == "listen" and not is_loopback(host) and not config.tls_certificate and not config.insecure_listen:
            problems.append(
                f"listen is {address!r}, which others can reach, without TLS: set tls_certificate and tls_key, or put "
                "a proxy with TLS in front and listen on 127.0.0.1, or set insecure_listen if the network itself is "
                "private"
            )
    if config.tls_key and not config.tls_certificate:
        problems.append("tls_key is set and tls_certificate is not: the certificate is missing")
    try:
        networks(config.trusted_proxies)
    except ValueError as error:
        problems.append(f"trusted_proxies: {error}")
    strangers = [scope for scope in config.sign_up_scopes if scope not in _SIGN_UP_SCOPES]
    if strangers:
        problems.append(f"sign_up_scopes may only hold {', '.join(_SIGN_UP_SCOPES)}, not {', '.join(strangers)}")
    if config.default_currency not in config.currencies and iso_scale(config.default_currency) is None:
        problems.append(
            f"default_currency is {config.default_currency!r}: give an ISO 4217 code, or its decimals in currencies"
        )
    if config.log_level not in _LOG_LEVELS:
        problems.append(f"log_level is {config.log_level!r}: it must be one of {', '.join(_LOG_LEVELS)}")
    if config.call_accounts_max < config.unit_accounts_max:
        problems.append("call_accounts_max must not be below unit_accounts_max: such a unit could never be posted")
    return problems


def host_and_port(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, an IPv6 host in brackets. Port 0 is any free one. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError("it must be HOST:PORT, for example 127.0.0.1:8710")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError("an IPv6 address goes in brackets, for example [::1]:8710")
    return host.strip("[]"), int(port)


def _shown(name: str, value: Any) -> str:
    if name == "dsn":
        return without_secrets(value)
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, dict):
        return ",".join(f"{key}={member}" for key, member in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
