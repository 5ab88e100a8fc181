"""Known datasets: fetched once, checked, and refused with a way out."""

from __future__ import annotations

import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ghosttune.data.fetching import KnownFile, cache_folder, located
from ghosttune.errors import DataError

TRAIN = b"mr,ref\na,b\nc,d\n"
DEV = b"mr,ref\ne,f\n"


class Site:
    """Files served on 127.0.0.1, and what was asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.asked: list[str] = []
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *arguments: object) -> None:
                if self.command == "GET" and not format.startswith("code"):
                    site.asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join(timeout=150)
            self.server.server_close()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "train.csv").write_bytes(TRAIN)
    (folder / "dev.csv").write_bytes(DEV)
    monkeypatch.setenv("GHOSTTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Site(folder)
    yield made
    made.stop()


REVISION = "0123456789abcdef"
Files = dict[str, KnownFile]


def files_of(site: Site) -> Files:
    return {
        "train": KnownFile("train.csv", f"{site.url}/train.csv", rows=2),
        "dev": KnownFile("dev.csv", f"{site.url}/dev.csv", rows=1, sha256=sha256(DEV).hexdigest()),
    }


def found(files: Files, path: str | None = None) -> dict[str, Path]:
    return located("made", files, REVISION, path)


def kept() -> list[str]:
    return sorted(path.name for path in cache_folder().rglob("*") if path.is_file())


def fault(files: Files, path: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        found(files, path)
    return str(caught.value)


def test_a_good_copy_is_fetched_once(site: Site) -> None:
    first = found(files_of(site))
    assert {split: path.read_bytes() for split, path in first.items()} == {"train": TRAIN, "dev": DEV}
    assert {path.parent for path in first.values()} == {cache_folder() / "made" / "0123456789ab"}
    assert sorted(site.asked) == ["/dev.csv", "/train.csv"]
    site.stop()
    assert found(files_of(site)) == first, "the second use needs no network"
    assert len(site.asked) == 2 and kept() == ["dev.csv", "train.csv"]


def test_a_wrong_checksum_is_refused_and_nothing_kept(site: Site) -> None:
    (site.folder / "dev.csv").write_bytes(DEV + b"g,h\n")
    message = fault(files_of(site))
    assert f"gave bytes with sha256 {sha256(DEV + b'g,h' + bytes([10])).hexdigest()}" in message
    assert f"expected {sha256(DEV).hexdigest()}" in message and "nothing was kept" in message
    assert kept() == ["train.csv"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"mr,ref\na,b\n", "1 rows, expected 2"),
        (b"<html>sorry</html>\n", "expected 2"),
        (b"", "unreadable"),
        (b"\xff", "unreadable"),
    ],
)
def test_a_copy_without_checksum_is_known_by_its_rows(site: Site, content: bytes, said: str) -> None:
    (site.folder / "train.csv").write_bytes(content)
    message = fault(files_of(site))
    assert said in message and f"{site.url}/train.csv gave" in message
    assert kept() == []


def test_offline_says_what_to_do(site: Site) -> None:
    site.stop()
    message = fault(files_of(site))
    folder = cache_folder() / "made" / "0123456789ab"
    for said in (f"{site.url}/train.csv cannot be fetched", "put train.csv there", str(folder), "data.train.path"):
        assert said in message
    assert kept() == []
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.csv").write_bytes(TRAIN)
    (folder / "dev.csv").write_bytes(DEV)
    assert set(found(files_of(site))) == {"train", "dev"}, "and that works"


def test_a_file_the_site_lacks(site: Site) -> None:
    files = files_of(site)
    message = fault({**files, "dev": replace(files["dev"], url=f"{site.url}/gone.csv")})
    assert "gone.csv cannot be fetched" in message and "not found" in message.lower()
    assert kept() == ["train.csv"]


def test_a_cached_copy_that_changed_is_refused(site: Site) -> None:
    path = found(files_of(site))["dev"]
    path.write_bytes(DEV + b"x,y\n")
    message = fault(files_of(site))
    assert f"{path} was changed since it was fetched" in message and "delete it" in message


def test_a_cache_that_cannot_be_written(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GHOSTTUNE_CACHE", str(tmp_path / "file"))
    message = fault(files_of(site))
    assert "cannot be fetched into" in message and "GHOSTTUNE_CACHE" in message


def test_files_of_a_given_folder_are_used_as_they_are(site: Site, tmp_path: Path) -> None:
    import gzip

    folder = tmp_path / "mine"
    message = fault(files_of(site), str(folder))
    assert "is not a folder" in message and "train.csv, dev.csv" in message
    folder.mkdir()
    (folder / "dev.csv").write_bytes(DEV)
    assert "lacks train.csv; made needs train.csv, dev.csv" in fault(files_of(site), str(folder))
    (folder / "train.csv.gz").write_bytes(gzip.compress(TRAIN))
    assert found(files_of(site), str(folder)) == {"train": folder / "train.csv.gz", "dev": folder / "dev.csv"}
    assert site.asked == [], "a given folder is never completed from the network"


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GHOSTTUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ghosttune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "ghosttune"


def packed(folder: Path, kind: str) -> Path:
    """An archive with the two files in a folder of their own, and a member that would escape."""
    content = {"data/train.csv": TRAIN, "data/dev.csv": DEV, "../../escaped.csv": b"no"}
    path = folder / f"all.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, f"w:{kind.removeprefix('tar').lstrip('.')}") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def packed_files(site: Site, path: Path) -> Files:
    archive = KnownFile(path.name, f"{site.url}/{path.name}", sha256=sha256(path.read_bytes()).hexdigest())
    return {
        split: KnownFile(f"{split}.csv", archive.url, rows=rows, archive=archive, member=f"data/{split}.csv")
        for split, rows in (("train", 2), ("dev", 1))
    }


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_files_inside_an_archive(site: Site, tmp_path: Path, kind: str) -> None:
    files = packed_files(site, packed(site.folder, kind))
    first = found(files)
    assert {split: path.read_bytes() for split, path in first.items()} == {"train": TRAIN, "dev": DEV}
    assert site.asked == [f"/all.{kind}"], "fetched once"
    assert not list(tmp_path.rglob("escaped.csv")), "no other member is unpacked"
    site.stop()
    assert found(files) == first
    first["dev"].write_bytes(DEV + b"x,y\n")
    assert "was changed since it was fetched: it has 2 rows, expected 1" in fault(files)
    first["dev"].unlink()
    assert found(files)["dev"].read_bytes() == DEV, "unpacked again from the archive in the cache"


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2"])
def test_a_damaged_archive_is_refused(site: Site, kind: str) -> None:
    path = packed(site.folder, kind)
    published = packed_files(site, path)
    path.write_bytes(path.read_bytes()[:-40])
    assert f"all.{kind} gave bytes with sha256" in fault(published) and kept() == []
    cut = packed_files(site, path)
    assert "data/train.csv cannot be unpacked" in fault(cut), "also where its publishers damaged it"
    assert kept() == [f"all.{kind}"]


def test_a_member_that_is_not_there(site: Site) -> None:
    files = packed_files(site, packed(site.folder, "zip"))
    assert "data/gone.csv cannot be unpacked" in fault({"dev": replace(files["dev"], member="data/gone.csv")})


def test_what_only_a_person_can_fetch_is_listed(site: Site) -> None:
    files = {
        split: KnownFile(f"{split}.csv", "unpack https://somewhere/x.7z", rows=rows, by_hand=True)
        for split, rows in (("train", 2), ("dev", 1))
    }
    message = fault(files)
    folder = cache_folder() / "made" / REVISION[:12]
    for said in ("train.csv, dev.csv must be fetched by hand: unpack https://somewhere/x.7z", str(folder)):
        assert said in message
    folder.mkdir(parents=True)
    (folder / "train.csv").write_bytes(TRAIN)
    (folder / "dev.csv").write_bytes(DEV)
    assert set(found(files)) == {"train", "dev"} and site.asked == []


def test_files_that_must_lie_beside_another(site: Site, tmp_path: Path) -> None:
    (site.folder / "tables.csv").write_bytes(DEV)
    dev = files_of(site)["dev"]
    files = {"dev": replace(dev, beside=(KnownFile("tables.csv", f"{site.url}/tables.csv", rows=1),))}
    assert set(found(files)) == {"dev"} and kept() == ["dev.csv", "tables.csv"]
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "dev.csv").write_bytes(DEV)
    assert "lacks tables.csv; made needs tables.csv, dev.csv" in fault(files, str(folder))


def test_another_kind_of_the_same_file_is_taken(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"mr": "a", "ref": "b"}\n')
    (folder / "dev.csv").write_bytes(DEV)
    assert found(files_of(site), str(folder)) == {"train": folder / "train.jsonl", "dev": folder / "dev.csv"}
