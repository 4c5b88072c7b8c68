"""Sites: made completely or not at all, found in order, and refused in one clear line."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from nas_hpc.errors import SiteError
from nas_hpc.site import DIRECTORIES, SITE_FILE, SITE_VARIABLE, Site, create_site, find_site, load_site


def listing(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_a_new_site_is_private_and_has_its_directories(tmp_path: Path) -> None:
    site = create_site(tmp_path / "site")
    assert site.path.is_absolute()
    for directory in (site.path, *(site.path / name for name in DIRECTORIES)):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(site.file.stat().st_mode) == 0o600
    assert load_site(site.path) == site


def test_an_empty_directory_becomes_a_site(site_dir: Path) -> None:
    assert create_site(site_dir).file.is_file()


def test_a_site_is_named_as_its_user_names_it_through_symbolic_links(tmp_path: Path) -> None:
    create_site(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    assert load_site(tmp_path / "link").path == tmp_path / "link"


def test_a_relative_path_and_a_home_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert create_site("a").path == tmp_path / "a"
    assert load_site("~/a").path == tmp_path / "a"


def test_a_site_is_not_made_twice_and_the_first_stays_as_it_was(tmp_path: Path) -> None:
    site = create_site(tmp_path / "site")
    before = site.file.read_bytes()
    with pytest.raises(SiteError, match="is a site already, nothing was changed"):
        create_site(site.path)
    assert site.file.read_bytes() == before


@pytest.mark.parametrize("error", [SiteError("the disk is full"), KeyboardInterrupt()])
def test_nothing_is_left_when_making_the_database_fails(tmp_path: Path, error: BaseException) -> None:
    def fill(site: Site) -> None:
        site.database.write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        create_site(tmp_path / "site", fill)
    assert listing(tmp_path) == []


def test_an_empty_directory_stays_when_making_a_site_in_it_fails(site_dir: Path) -> None:
    def fill(_site: Site) -> None:
        raise SiteError("no")

    with pytest.raises(SiteError):
        create_site(site_dir, fill)
    assert site_dir.is_dir()
    assert listing(site_dir) == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("file", "is a file"),
        ("file/below", "is a file, not a directory"),
        ("no/such/parent", "mkdir -p"),
        ("full", "has other things in it"),
        ("dangling", "is a link to nowhere"),
        ("x" * 300, "the name is too long"),
    ],
)
def test_a_path_that_cannot_become_a_site_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = listing(tmp_path)
    with pytest.raises(SiteError) as caught:
        create_site(path)
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert listing(tmp_path) == before


def test_a_site_is_looked_for_by_flag_then_environment_then_upward(tmp_path: Path) -> None:
    sites = {name: create_site(tmp_path / name) for name in ("flag", "variable", "above")}
    below = sites["above"].data / "TEST"
    below.mkdir()
    environ = {SITE_VARIABLE: str(sites["variable"].path)}
    assert find_site(sites["flag"].path, environ, below) == sites["flag"]
    assert find_site(None, environ, below) == sites["variable"]
    assert find_site(None, {}, below) == sites["above"]
    with pytest.raises(SiteError, match="nas-hpc init NAME"):
        find_site(None, {}, tmp_path)


def test_a_relative_flag_is_seen_from_the_working_directory(tmp_path: Path) -> None:
    site = create_site(tmp_path / "site")
    assert find_site("site", {}, tmp_path) == site


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("schema = 2\n", "has schema 2, this version of nas-hpc reads schema 1"),
        ("schema = true\n", "has schema True"),
        ("created = 1.0\n", "has schema None"),
        ("schema = = 1\n", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
    ],
)
def test_a_site_of_another_version_is_refused(tmp_path: Path, content: str | bytes, said: str) -> None:
    site = create_site(tmp_path / "site")
    site.file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SiteError) as caught:
        load_site(site.path)
    assert said in caught.value.message
    assert str(site.file) in caught.value.message
    assert "\n" not in caught.value.message


def test_what_is_no_site_is_refused_with_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "plain").mkdir()
    for name, said in (
        ("nothing", "does not exist"),
        ("file", "is a file"),
        ("plain", f"has no {SITE_FILE}"),
    ):
        with pytest.raises(SiteError, match=said):
            find_site(tmp_path / name, {}, tmp_path)


def test_a_site_that_lost_a_directory_says_how_to_bring_it_back(tmp_path: Path) -> None:
    site = create_site(tmp_path / "site")
    shutil.rmtree(site.run)
    with pytest.raises(SiteError, match="mkdir -m 700"):
        load_site(site.path)


def test_a_site_that_others_own_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = create_site(tmp_path / "site")
    site.check_writable()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(SiteError, match="is not writable for you"):
        site.check_writable()
