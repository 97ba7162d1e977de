"""Where settings come from, what is refused, and what is never shown."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from ledgerd.addresses import is_loopback
from ledgerd.config import Config, SettingsError
from ledgerd.settings import host_and_port, load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledgerd.toml"


def problems_of(flags=None, environ=None, file=None) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        load(flags or {}, environ or {}, file)
    return refused.value.problems


def test_nothing_said_means_the_defaults():
    settings = load({}, {})
    assert settings.config == Config()
    assert set(settings.sources.values()) == {"default"}


def test_flags_win_over_the_environment_over_the_file(file: Path):
    file.write_text("lanes = 3\nreaders = 3\nfeed_poll_s = 3\n")
    settings = load({"lanes": "5"}, {"LEDGERD_LANES": "4", "LEDGERD_READERS": "4"}, file)
    config = settings.config
    assert (config.lanes, config.readers, config.feed_poll_s) == (5, 4, 3.0)
    assert settings.sources["lanes"] == "flag"
    assert settings.sources["readers"] == "environment"
    assert settings.sources["feed_poll_s"] == f"file {file}"
    assert settings.sources["listen"] == "default"


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    directory = tmp_path / "credentials"
    directory.mkdir()
    return directory


def test_a_credential_wins_over_the_file_and_loses_against_the_environment(file: Path, credentials: Path):
    file.write_text("lanes = 3\ndsn = 'postgresql://file/bank'\nreaders = 3\n")
    (credentials / "dsn").write_text("postgresql://ledgerd:quiet@db/bank\n")
    (credentials / "lanes").write_text("4\n")
    environ = {"CREDENTIALS_DIRECTORY": str(credentials), "LEDGERD_LANES": "5"}
    settings = load({}, environ, file)
    assert settings.config.dsn == "postgresql://ledgerd:quiet@db/bank"
    assert (settings.config.lanes, settings.config.readers) == (5, 3)
    assert (settings.sources["dsn"], settings.sources["lanes"]) == ("credential", "environment")
    assert ("dsn", "postgresql://ledgerd:***@db/bank", "credential") in settings.rows()


def test_credentials_of_a_directory_carry_the_name_that_systemd_puts_before_them(credentials: Path):
    (credentials / "ledgerd_dsn").write_text("postgresql:///bank")
    assert load({}, {"CREDENTIALS_DIRECTORY": str(credentials)}).config.dsn == "postgresql:///bank"


def test_a_setting_that_names_a_file_takes_the_path_of_its_credential(credentials: Path):
    for name in ("ledgerd_tls_certificate", "ledgerd_tls_key"):
        (credentials / name).write_bytes(b"\xff is nobody's text")
    config = load({}, {"CREDENTIALS_DIRECTORY": str(credentials)}).config
    assert config.tls_certificate == str(credentials / "ledgerd_tls_certificate")
    assert config.tls_key == str(credentials / "ledgerd_tls_key")


def test_a_credential_that_is_ours_and_no_setting_is_refused_and_those_of_others_are_left_alone(credentials: Path):
    (credentials / "network.dns").write_text("192.0.2.1")
    (credentials / "ledgerd_dns").write_text("postgresql:///bank")
    said = problems_of(environ={"CREDENTIALS_DIRECTORY": str(credentials)})
    assert said == ["credential ledgerd_dns is not a setting; did you mean ledgerd_dsn?"]


def test_a_credential_of_the_wrong_type_is_refused_by_its_name(credentials: Path):
    (credentials / "lanes").write_text("many")
    [said] = problems_of(environ={"CREDENTIALS_DIRECTORY": str(credentials)})
    assert said.startswith("credential lanes is 'many': ")


def test_credentials_that_cannot_be_read_are_named(credentials: Path):
    (credentials / "dsn").write_bytes(b"\xff")
    [said] = problems_of(environ={"CREDENTIALS_DIRECTORY": str(credentials)})
    assert said.startswith(f"CREDENTIALS_DIRECTORY: {credentials} cannot be read")
    [said] = problems_of(environ={"CREDENTIALS_DIRECTORY": str(credentials / "none")})
    assert "No such file or directory" in said


def test_a_flag_that_was_not_given_hides_nothing():
    assert load({"listen": None}, {"LEDGERD_LISTEN": "127.0.0.1:1"}).config.listen == "127.0.0.1:1"


def test_lists_and_tables_can_be_written_as_text():
    environ = {"LEDGERD_ALLOWED_ORIGINS": "https://a.example, https://b.example", "LEDGERD_CURRENCIES": "BTC=8, XYZ=0"}
    config = load({"open-sign-up": "true"}, environ).config
    assert config.allowed_origins == ("https://a.example", "https://b.example")
    assert config.currencies == {"BTC": 8, "XYZ": 0}
    assert config.open_sign_up is True


def test_every_setting_of_the_file_format_survives_its_way_through_toml(file: Path):
    file.write_text('allowed_origins = ["https://a.example"]\nopen_sign_up = true\n[currencies]\nBTC = 8\n')
    config = load({}, {}, file).config
    assert config.allowed_origins == ("https://a.example",)
    assert config.open_sign_up is True
    assert config.currencies == {"BTC": 8}


@pytest.mark.parametrize("where", ["flag", "environment", "file"])
def test_an_unknown_key_is_refused_and_the_nearest_known_one_named(file: Path, where: str):
    flags, environ = {}, {}
    if where == "flag":
        flags = {"resume_maxx": "1"}
    elif where == "environment":
        environ = {"LEDGERD_RESUME_MAXX": "1"}
    else:
        file.write_text("resume_maxx = 1\n")
    (problem,) = problems_of(flags, environ, file if where == "file" else None)
    assert "resume_max" in problem.lower().partition("did you mean")[2]


def test_a_key_like_no_other_points_to_the_list():
    (problem,) = problems_of(environ={"LEDGERD_ZZZZZZ": "1"})
    assert "LEDGERD_ZZZZZZ" in problem
    assert "ledgerd config" in problem


def test_variables_of_the_commands_and_of_kubernetes_are_left_alone():
    environ = {
        "LEDGERD_TOKEN": "lgd_x",
        "LEDGERD_URL": "ws://x",
        "LEDGERD_CONFIG": "x",
        "LEDGERD_OWNER_DSN": "x",
        "LEDGERD_SERVICE_HOST": "10.0.0.1",
        "LEDGERD_PORT": "tcp://10.0.0.1:8710",
        "LEDGERD_PORT_8710_TCP_ADDR": "10.0.0.1",
        "PATH": "/bin",
    }
    assert load({}, environ).config == Config()


def test_all_problems_are_reported_at_once():
    environ = {"LEDGERD_LANES": "many", "LEDGERD_READERS": "0", "LEDGERD_RESUMEMAX": "1"}
    assert len(problems_of(environ=environ)) == 3


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("lanes", "many", "whole number"),
        ("lanes", "0", ">= 1"),
        ("lanes", "33", "<= 32"),
        ("lanes", "2.5", "whole number"),
        ("feed_poll_s", "0", "> 0"),
        ("feed_poll_s", "soon", "number"),
        ("open_sign_up", "maybe", "true or false"),
        ("currencies", "BTC=9", "<= 8"),
        ("currencies", "BTC", "whole number"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_in_words(name: str, value: str, says: str):
    (problem,) = problems_of(environ={f"LEDGERD_{name.upper()}": value})
    assert problem.startswith(f"LEDGERD_{name.upper()} is ")
    assert says in problem


def test_a_file_must_have_the_right_types_not_only_the_right_texts(file: Path):
    file.write_text('lanes = "3"\n')
    (problem,) = problems_of(file=file)
    assert str(file) in problem
    assert "whole number" in problem


def test_a_file_that_is_missing_or_not_toml_is_named(file: Path):
    assert "cannot be read" in problems_of(file=file)[0]
    file.write_text("lanes = = 3")
    assert "not TOML" in problems_of(file=file)[0]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"listen": "8710"}, "HOST:PORT"),
        ({"http": "127.0.0.1:70000"}, "HOST:PORT"),
        ({"listen": "::1:8710"}, "brackets"),
        ({"listen": "0.0.0.0:8710"}, "insecure_listen"),
        ({"tls_key": "server.key"}, "tls_certificate is not"),
        ({"trusted_proxies": "10.0.0.0/8,proxy.example"}, "proxy.example"),
        ({"trusted_proxies": "10.0.0.1/8"}, "host bits"),
        ({"sign_up_scopes": "user,operator"}, "operator"),
        ({"default_currency": "WUT"}, "ISO 4217"),
        ({"log_level": "loud"}, "debug, info"),
        ({"call_accounts_max": "10"}, "unit_accounts_max"),
    ],
)
def test_what_contradicts_itself_or_is_dangerous_is_refused(flags: dict[str, str], says: str):
    (problem,) = problems_of(flags)
    assert says in problem


def test_an_open_address_is_allowed_when_it_is_asked_for_by_name():
    assert load({"listen": "0.0.0.0:8710", "insecure_listen": "true"}, {}).config.listen == "0.0.0.0:8710"


def test_an_open_address_is_allowed_with_tls():
    assert load({"listen": "0.0.0.0:8710", "tls_certificate": "server.pem"}, {}).config.tls_certificate == "server.pem"


def test_trusted_proxies_are_networks_and_the_word_for_unix_sockets():
    given = load({"trusted_proxies": "10.0.0.0/8, ::1, unix"}, {}).config.trusted_proxies
    assert given == ("10.0.0.0/8", "::1", "unix")


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://me:hunter2@db:5432/bank", "postgresql://me:***@db:5432/bank"),
        ("postgresql://me@db/bank", "postgresql://me@db/bank"),
        ("postgresql://db/bank?user=me&password=hunter2&x=1", "postgresql://db/bank?user=me&password=***&x=1"),
        ("host=db user=me password=hunter2 dbname=bank", "host=db user=me password=*** dbname=bank"),
        ("host=db password='hunter2 and more' dbname=bank", "host=db password=*** dbname=bank"),
        ("postgresql://me:hunter2%40home@db/bank?sslpassword=hunter2", "postgresql://me:***@db/bank?sslpassword=***"),
    ],
)
def test_a_password_is_never_shown(dsn: str, shown: str):
    rows = {name: value for name, value, _ in load({"dsn": dsn}, {}).rows()}
    assert rows["dsn"] == shown


def test_a_wrong_dsn_is_not_repeated_in_the_complaint(file: Path):
    file.write_text('dsn = ["postgresql://me:hunter2@db/bank"]\n')
    assert "hunter2" not in "".join(problems_of(file=file))


def test_the_rows_cover_every_setting_once():
    names = [name for name, _, _ in load({}, {}).rows()]
    assert names == [field.name for field in msgspec.structs.fields(Config)]


def test_addresses_are_taken_apart():
    assert host_and_port("127.0.0.1:0") == ("127.0.0.1", 0)
    assert host_and_port("[::1]:8710") == ("::1", 8710)
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "")] == [False] * 5
