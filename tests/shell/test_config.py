from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import shmpoold
from shmpool.errors import ConfigError
from shmpool.protocol.sizing import KIB, MIB, TierKind
from shmpoold.cli import main
from shmpoold.config import Config, Origin, floors, load, parse_assignment, read, texts, to_settings
from shmpoold.core.settings import Floor, Settings

DOCS = Path(shmpoold.__file__).parents[2] / "docs"
EXAMPLE = Path(shmpoold.__file__).parents[1] / "units" / "shmpoold.toml"


def refusal(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, overrides)
    return str(caught.value)


def test_defaults_are_the_core_s_defaults() -> None:
    assert to_settings(load(None, {}), (0, 0), (0, 0)) == Settings()


@pytest.mark.parametrize(
    ("written", "nbytes"),
    [(2 * MIB, 2 * MIB), ("256MiB", 256 * MIB), ("64 mib", 64 * MIB), ("1.5GiB", 1536 * MIB), ("8388608", 8 * MIB)],
)
def test_sizes_are_numbers_or_strings_with_a_unit(written: Any, nbytes: int) -> None:
    assert load(None, {"memory_limit": written, "max_clients": 8}).memory_limit == nbytes


@pytest.mark.parametrize(("written", "seconds"), [(5, 5), (0.5, 0.5), ("300s", 300), ("5min", 300), ("250 ms", 0.25)])
def test_durations_are_seconds_or_strings_with_a_unit(written: Any, seconds: float) -> None:
    assert load(None, {"lease_timeout": written}).lease_timeout == seconds


def test_unknown_key_is_refused_with_a_suggestion() -> None:
    assert refusal(memory_limt=1) == "memory_limt is no setting; did you mean memory_limit?"
    assert "did you mean" not in refusal(zzz=1)


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("memory_limit", 4096, "at least 1 MiB"),
        ("memory_limit", "2TiB", "below 1 TiB"),
        ("max_clients", 0, "1"),
        ("max_clients", 70000, "65535"),
        ("lease_timeout", -1, "at least 0 s"),
        ("handle_ttl", 0, "above 0 s"),
        ("magazine_bytes", "1KiB", "4 KiB"),
    ],
)
def test_a_value_out_of_bounds_names_key_value_and_bound(key: str, value: Any, bound: str) -> None:
    text = refusal(**{key: value})
    assert text.startswith(f"{key} = ")
    assert bound in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory_limit", "256MB"), ("memory_limit", True), ("memory_limit", 1.5), ("memory_limit", "-1MiB"),
        ("lease_timeout", "5 parsec"), ("lease_timeout", True), ("lease_timeout", float("nan")), ("max_clients", "7"),
        ("on_stop", "burn"), ("log_level", "loud"), ("group", "no-such-group"), ("pooled_sizes", ["4KiB", "x"]),
        ("pooled_sizes", []), ("pooled_sizes", [5000]), ("pooled_sizes", ["8KiB", "4KiB"]), ("socket", ""),
        ("socket", "@abstract"), ("socket", 3), ("very_large_object_threshold", "1KiB"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_and_named(key: str, value: Any) -> None:
    assert key in refusal(**{key: value})


def test_socket_path_that_no_address_holds_is_refused_with_its_length() -> None:
    assert "108" in refusal(socket="/" + "x" * 107)
    assert load(None, {"socket": "/" + "x" * 106}).socket


def test_limit_must_leave_room_for_tables_and_a_slot() -> None:
    text = refusal(memory_limit="1MiB")
    least = re.search(r"at least (\d+ MiB)", text)
    assert least is not None
    assert load(None, {"memory_limit": least[1]}).memory_limit


def test_others_may_not_be_allowed_without_a_group() -> None:
    assert "need group" in refusal(allow_uids=[1])
    config = load(None, {"allow_uids": ["root", 7], "group": os.getgid()})
    assert config.allow_uids == (0, 7)


def test_file_is_read_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('memory_limit = "64MiB"\nlease_timeout = "1min"\n')
    config = load(str(path), {"lease_timeout": 2})
    assert (config.memory_limit, config.lease_timeout) == (64 * MIB, 2)


@pytest.mark.parametrize("content", [b"a = = 1", b"\xff\xfe", b'memory_limit = "x"'])
def test_bad_file_is_a_config_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    for wrong in (path, tmp_path / "missing.toml"):
        with pytest.raises(ConfigError, match=re.escape(str(wrong))):
            load(str(wrong), {})


def test_overrides_of_the_command_line_are_toml_or_plain_strings() -> None:
    assert parse_assignment("allow_uids=[1, 2]") == ("allow_uids", [1, 2])
    assert parse_assignment("memory_limit=1GiB") == ("memory_limit", "1GiB")
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_assignment("memory_limit")


def test_example_file_is_what_the_declaration_says() -> None:
    assert EXAMPLE.read_text() == texts.example()


def test_example_with_its_comments_taken_off_is_valid_and_default() -> None:
    text = re.sub(r"^#(?! )", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    values = tomllib.loads(text)
    assert set(values) == set(Config.model_fields)
    for without_default in ("socket", "group", "max_buffer_age", "preallocate", "metrics_address", "alerts"):
        del values[without_default]
    assert load(None, values) == load(None, {})


def test_what_is_in_force_reads_back_the_same() -> None:
    reading = read(None, {}, {"memory_limit": "100MiB", "lease_timeout": 1.5})
    assert load(None, tomllib.loads(texts.in_force(reading))) == reading.config


def test_a_size_that_is_no_round_number_is_shown_exactly_and_for_people() -> None:
    """A share of the host is one."""
    reading = read(None, {}, {"memory_limit": 12_638_248_960})
    assert re.search(
        r'^memory_limit = "12638248960 B" +# command line, 11\.8 GiB$', texts.in_force(reading), re.MULTILINE
    )
    assert load(None, tomllib.loads(texts.in_force(reading))) == reading.config


def test_each_source_overrides_the_one_before_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('memory_limit = "64MiB"\nlease_timeout = "1min"\nhandle_ttl = 1\n')
    environment = {"SHMPOOLD_LEASE_TIMEOUT": "2s", "SHMPOOLD_HANDLE_TTL": "3", "SHMPOOL_SOCKET": "/not/ours"}
    reading = read(str(path), environment, {"handle_ttl": 4})
    config = reading.config
    assert (config.memory_limit, config.lease_timeout, config.handle_ttl) == (64 * MIB, 2, 4)
    origins = [reading.origins[key] for key in ("memory_limit", "lease_timeout", "handle_ttl", "max_clients")]
    assert origins == [Origin.FILE, Origin.ENVIRONMENT, Origin.COMMAND_LINE, Origin.DEFAULT]
    shown = texts.in_force(reading)
    assert re.search(r'^lease_timeout = "2 s" +# environment$', shown, re.MULTILINE)
    assert re.search(r"^# +1  pooled 16 KiB +\d+$", shown, re.MULTILINE)


def test_a_wrong_value_is_named_with_the_place_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("max_clients = 0\n")
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: max_clients = 0 is too small"):
        load(str(path), {})
    with pytest.raises(ConfigError, match=r"^SHMPOOLD_MAX_CLIENTS: max_clients = 0 is too small"):
        read(None, {"SHMPOOLD_MAX_CLIENTS": "0"}, {})
    with pytest.raises(ConfigError, match=r"^SHMPOOLD_MAX_CLINTS: max_clints is no setting; did you mean max_clients"):
        read(None, {"SHMPOOLD_MAX_CLINTS": "1"}, {})
    with pytest.raises(ConfigError, match=r"^max_clients = 0 is too small"):
        load(None, {"max_clients": 0})


def test_documented_table_is_what_the_declaration_says() -> None:
    assert texts.table() in (DOCS / "configuration.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"pooled_sizes": ["4KiB", "1MiB", "2MiB"]}, "2 MiB, but objects from very_large_object_threshold, 1 MiB"),
        ({"min_buffer_size": "512KiB"}, "none lies from min_buffer_size, 512 KiB"),
        ({"max_buffer_size": "8KiB", "min_buffer_size": "8KiB"}, "to max_buffer_size, 8 KiB"),
        ({"medium_object_threshold": "512KiB"}, "not 512 KiB, 256 KiB, 1 MiB"),
        ({"chunk_sizes": ["5KiB"]}, "chunk_sizes must be multiples of the page, 4 KiB"),
        ({"chunk_sizes": ["512MiB"]}, "less than one slot of 512 MiB, which chunk_sizes names"),
        ({"chunk_sizes": "some"}, "chunk_sizes = 'some': write 'auto' or a list"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_units_people_write(
    overrides: dict[str, Any], words: str
) -> None:
    assert words in refusal(**overrides)


def test_slot_sizes_outside_the_bounds_are_left_out() -> None:
    config = load(None, {"min_buffer_size": "16KiB", "max_buffer_size": "100KiB"})
    assert config.sizing.pooled_sizes == (16 * KIB, 32 * KIB, 64 * KIB)
    assert [tier.size for tier in config.tiers[:3]] == [16 * KIB, 32 * KIB, 64 * KIB]


@pytest.mark.parametrize("large", ["4KiB", "100KiB", "256KiB", "2MiB", "64MiB"])
def test_automatic_chunk_sizes_fit_their_thresholds(large: str) -> None:
    thresholds = {"medium_object_threshold": 1, "large_object_threshold": large, "very_large_object_threshold": "64MiB"}
    config = load(None, {"memory_limit": "1GiB", "chunk_sizes": "auto", "pooled_sizes": ["4KiB"], **thresholds})
    small, big = config.sizing.chunk_sizes
    assert big == 2 * small
    assert small <= max(4 * KIB, config.large_object_threshold // 4)
    assert load(None, {"chunk_sizes": "auto"}).sizing == load(None, {}).sizing


BAD_CONFIGS = sorted((Path(__file__).parent / "bad_configs").glob("*.toml"))


@pytest.mark.parametrize("path", BAD_CONFIGS, ids=lambda path: path.stem)
def test_check_of_a_bad_file_gives_the_error_that_the_file_says(path: Path) -> None:
    expected = path.read_text(errors="replace").splitlines()[0].removeprefix("# expect: ")
    done = CliRunner().invoke(main, ["--check", "--config", str(path)])
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert "shmpoold: " in done.stderr and "Traceback" not in done.output


GARBAGE = (
    "", " ", "x", "-1", "nan", "inf", "1e400", "true", "[]", "{}", "[1]", "[[1]]", "['x']", '{"a" = 1}', "1.5",
    "9" * 400, "\0", "5 parsecs", "150 %", "-50 %", "1979-05-27", '"""', "1 MiB MiB",
)  # fmt: skip


@pytest.mark.parametrize("key", Config.model_fields)
def test_garbage_is_refused_in_a_line_that_names_the_key(key: str) -> None:
    """Or taken, where it makes sense: a path may be anything."""
    refused = 0
    for text in GARBAGE:
        try:
            read(None, {}, dict([parse_assignment(f"{key}={text}")]))
        except ConfigError as error:
            refused += 1
            told = str(error)
            assert key in told
            assert len(told) < 400 and told.isprintable()
            assert not re.search(r"input should|valid|datetime|True|False|embedded", told), told
    assert refused >= 5


def test_floors_follow_from_shares_and_are_shown() -> None:
    config = load(None, {"allocation_strategy": "preallocate", "preallocate": {"64KiB": "10%", "16 KiB": "1%"}})
    assert floors(config) == (
        Floor(TierKind.POOLED, 64 * KIB, 256 * MIB // 10 // (64 * KIB)),
        Floor(TierKind.POOLED, 16 * KIB, 256 * MIB // 100 // (16 * KIB)),
    )
    config = load(None, {"allocation_strategy": "hybrid"})
    assert {floor.size for floor in floors(config)} == set(config.sizing.pooled_sizes)
    assert 0.09 < sum(floor.size * floor.slots for floor in floors(config)) / config.memory_limit <= 0.1
    assert floors(load(None, {})) == ()
    shown = texts.in_force(read(None, {}, {"allocation_strategy": "hybrid", "preallocate": {"64KiB": "10%"}}))
    assert 'preallocate = {"64 KiB" = "10 %"}' in shown
    assert re.search(r"pooled 64 KiB +\d+ +409$", shown, re.MULTILINE)
