"""Where a site's database is: URLs that are wrong are told, and a password stands nowhere but in its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.errors import ConfigError, WrongCall
from nas_hpc.site import create_site
from nas_hpc.store.place import Place, check_secret, hidden, place_of, split_url, write_place

HOST = "postgresql://me@host:5432/jobs"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (HOST, (HOST, "")),
        ("postgres://me:secret@host/jobs", ("postgresql://me@host/jobs", "secret")),
        ("postgresql://me:p%40s%2Fw@host/jobs?x=require", ("postgresql://me@host/jobs?x=require", "p@s/w")),
        ("postgresql://me:a@b@host/jobs", ("postgresql://me@host/jobs", "a@b")),
        ("postgresql://me@host/jobs?password=secret&x=1", ("postgresql://me@host/jobs?x=1", "secret")),
        ("postgresql:///jobs?host=/run/pg&port=5433", ("postgresql:///jobs?host=/run/pg&port=5433", "")),
        ("postgresql://me@[::1]:5432/jobs", ("postgresql://me@[::1]:5432/jobs", "")),
    ],
)  # fmt: skip
def test_a_password_is_taken_out_of_a_url(url: str, wanted: tuple[str, str]) -> None:
    assert split_url(url, "--database") == wanted


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("mysql://me:hush@host/jobs", "no URL of a PostgreSQL database"),
        ("host/jobs", "no URL of a PostgreSQL database"),
        ("postgresql:me:hush@host/jobs", "no URL of a PostgreSQL database"),
        ("postgresql://me:hush@host", "names no database"),
        ("postgresql://me:hush@host/", "names no database"),
        ("postgresql:///jobs", "names no host"),
        ("postgresql://me:hush@host:port/jobs", "port has to be a number"),
        ("postgresql://me:hush@host:0/jobs", "port has to be a number"),
        ("postgresql://me:hush@host:99999/jobs", "port has to be a number"),
        ("postgresql://me:hush@host/jo bs", "blanks"),
        ("postgresql://me:hush@host/jobs\n", "blanks"),
        ("postgresql://me@host/jobs?password=hush#x", "%23"),
        ("postgresql://me:hush@host/jobs?sslpassword=hush", "sslpassword"),
    ],
)
def test_a_wrong_url_is_told_with_what_is_right_and_without_its_password(url: str, told: str) -> None:
    with pytest.raises(WrongCall, match=told) as caught:
        split_url(url, "--database")
    assert "hush" not in str(caught.value)
    assert "--database" in str(caught.value)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=30))
def test_no_message_about_a_url_tells_a_password(password: str) -> None:
    secret = f"xx{password}xx"
    shown = hidden(f"postgresql://me:{secret}@host/jobs")
    assert shown == "postgresql://me:***@host/jobs" or secret not in shown
    assert secret not in hidden(f"postgresql://host/jobs?password={secret.replace('&', '')}")


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ('url = "postgresql://me@host/jobs"\nowned = true', "either"),
        ("", "either"),
        ("owned = 1", "type bool"),
        ('url = "postgresql://me:hush@host/jobs"', "holds a password"),
        ('ulr = "x"', "unknown key 'ulr'"),
        ('url = "sqlite:///x"', "no URL of a PostgreSQL"),
    ],
)
def test_a_site_file_that_says_it_wrongly_is_told(tmp_path: Path, table: str, told: str) -> None:
    site = create_site(tmp_path / "site", lambda site: f"\n[database]\n{table}\n")
    with pytest.raises((ConfigError, WrongCall), match=told) as caught:
        place_of(site)
    assert "hush" not in str(caught.value)


def test_what_is_written_of_a_place_is_read_again_and_settings_stay(tmp_path: Path) -> None:
    site = create_site(tmp_path / "site")
    with site.file.open("a") as file:
        file.write('job_mode = "serial"  # mine\n')
    before = site.file.read_text()
    assert place_of(site).kind == "sqlite"
    for place in (
        Place(site.database, HOST, site.path / "database.password"),
        Place(site.database, password_file=site.path / "w", owned=True, interface="hsn0", server_user="me"),
        Place(site.database, HOST, Path("/elsewhere/w")),
    ):
        write_place(site, place)
        assert place_of(site) == place
        assert site.file.read_text().startswith(before)
        assert site.file.stat().st_mode & 0o777 == 0o600
    write_place(site, Place(site.database))
    assert site.file.read_text() == before


@pytest.mark.parametrize(
    ("content", "mode", "told"),
    [("w", 0o640, "chmod 600"), ("w", 0o604, "open to others"), ("", 0o600, "empty"), (None, 0, "be read")],
)
def test_a_password_file_that_is_no_good_is_told(
    tmp_path: Path, content: str | None, mode: int, told: str
) -> None:
    path = tmp_path / "word"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(WrongCall, match=told):
        check_secret(path, "--password-file")
