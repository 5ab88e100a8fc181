"""Images over OpenAI's call: the answers of `infer`, alone and together, and 400 for everything that is no image."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from families import saved
from PIL import Image, features
from seeing import COLOURS, picture, write_album
from served import Served, served

from ghosttune.inference.pipeline import Pipeline
from ghosttune.inference.sight import ImageLimits
from ghosttune.inference.voices import Limits
from ghosttune.workflows.infer import infer
from ghosttune.workflows.train import train

openai: Any = pytest.importorskip("openai", reason="the official client is not installed")

NEW = 8
LIMITS = Limits(images=ImageLimits(count=4, pixels=100_000, body_bytes=1 << 20))
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture(scope="module")
def run(image_config, tmp_path_factory) -> Path:
    rows = write_album(tmp_path_factory.mktemp("album"), 8, texts=4)
    return train(image_config(rows), tmp_path_factory.mktemp("runs") / "run").path


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """A base of a family whose images take as many tokens as they are large."""
    return saved("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def server(run, qwen) -> Iterator[Served]:
    """Of a run over images, of a model that sees and was not trained, and of one that does not."""
    models = {"run": Pipeline.open(run, "cpu"), "qwen": Pipeline.open(qwen, "cpu")}
    with served(models | {"words": Pipeline.open("builtin:tiny", "cpu")}, LIMITS) as found:
        yield found


@pytest.fixture(scope="module")
def album(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    for number, colour in enumerate(COLOURS):
        picture(folder / f"{number}.png", colour, (12 + 9 * number, 20))
    Image.open(folder / "0.png").save(folder / "0.jpeg")
    Image.open(folder / "1.png").save(folder / "1.gif")
    if features.check("webp"):
        Image.open(folder / "2.png").save(folder / "2.webp")
    return folder


def url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def part(of: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": of}}


def body(*parts: dict[str, Any], model: str = "run", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": list(parts)}], "max_tokens": NEW, **more}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


ROWS: tuple[list[str], ...] = (
    ["0.png", "\nWhich colour?"],
    ["1.png", "\nWhich colour?"],
    ["Compare ", "2.png", " with ", "0.png", " please"],
    ["No picture, only words"],
    ["0.jpeg", "1.gif", "3.png", "all of them?"],
    ["Which one is ", "3.png"],
)


@pytest.mark.parametrize("model", ["run", "qwen"])
def test_answers_are_those_of_infer_also_together(model, request, server, album, tmp_path):
    """By the official client: one after the other, then all at once, then streamed."""

    def sent(row: list[str]) -> list[dict[str, Any]]:
        parts = [(album / p, p) for p in row]
        return [part(url(f.read_bytes(), f.suffix[1:])) if f.is_file() else words(p) for f, p in parts]

    source = tmp_path / "rows.jsonl"
    asked = [
        {
            "id": str(number),
            "prompt": "".join("<image>" if (album / p).is_file() else p for p in row),
            "images": [str(album / p) for p in row if (album / p).is_file()],
        }
        for number, row in enumerate(ROWS)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in asked))
    infer(str(request.getfixturevalue(model)), source, tmp_path / "out.jsonl", max_new_tokens=NEW, device="cpu")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = [row["output"] for row in sorted(written, key=lambda row: int(row["example_id"]))]
    assert len(set(expected)) > 3, "it must look"
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

    def answer(row: list[str]) -> str:
        said = [{"role": "user", "content": sent(row)}]
        return client.chat.completions.create(model=model, messages=said, max_tokens=NEW).choices[0].message.content

    assert [answer(row) for row in ROWS] == expected
    with ThreadPoolExecutor(len(ROWS)) as pool:
        assert list(pool.map(answer, ROWS)) == expected
    said = [{"role": "user", "content": sent(ROWS[2])}]
    pieces = client.chat.completions.create(model=model, messages=said, max_tokens=NEW, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected[2]
    two = client.chat.completions.create(model=model, messages=said, max_tokens=NEW, n=2)
    assert [choice.message.content for choice in two.choices] == [expected[2]] * 2


def test_a_conversation_remembers_what_it_showed(server, run, album):
    data = (album / "0.png").read_bytes()
    opening = [{"role": "user", "content": [part(url(data)), words("\nWhich?")]}, {"role": "assistant", "content": "x"}]
    asked = {"model": "run", "messages": [*opening, {"role": "user", "content": "And now?"}], "max_tokens": NEW}
    status, told = server.post("/v1/chat/completions", asked)
    from ghosttune.data.turns import Turn

    turns = (Turn("user", "<image>\nWhich?", images=(str(album / "0.png"),)), Turn("assistant", "x"))
    turns = (*turns, Turn("user", "And now?"))
    expected = Pipeline.open(run, "cpu").generate([turns], max_new_tokens=NEW)[0].text
    assert status == 200 and told["choices"][0]["message"]["content"] == expected


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes = b"", *more: bytes) -> bytes:
    """A PNG that says it has this size."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = (*more, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(body)


def jpeg(scans: int) -> bytes:
    """A JPEG whose last scan is there so often."""
    made = BytesIO()
    Image.new("RGB", (64, 64)).save(made, "JPEG", progressive=True)
    data = made.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * scans + data[-2:]


def saved_as(kind: str) -> bytes:
    made = BytesIO()
    Image.new("RGB", (8, 8)).save(made, kind)
    return made.getvalue()


GOOD = png(8, 8, (b"\0" + bytes(24)) * 8)

REFUSED: dict[str, tuple[str, str]] = {
    "http": ("http://127.0.0.1:1/a.png", "opens no network and no file"),
    "https": ("https://example.org/a.png", "opens no network and no file"),
    "file": ("file:///etc/passwd", "opens no network and no file"),
    "path": ("/etc/passwd", "opens no network and no file"),
    "nothing": ("", "opens no network and no file"),
    "upper case": ("DATA:image/png;base64,AAAA", "opens no network and no file"),
    "no base64": ("data:image/png,AAAA", "opens no network and no file"),
    "SVG": ("data:image/svg+xml;base64,AAAA", "opens no network and no file"),
    "odd base64": ("data:image/png;base64,AAA", "not base64"),
    "signs": ("data:image/png;base64,A*A/../etc", "not base64"),
    "empty": ("data:image/png;base64,", "it is no PNG"),
    "text": (url(b"hello, I am a picture"), "it is no PNG"),
    "EPS as PNG": (url(saved_as("EPS")), "it is no PNG"),
    "TIFF as PNG": (url(saved_as("TIFF")), "it is no PNG"),
    "BMP": (url(saved_as("BMP")), "it is no PNG"),
    "cut": (url(GOOD[:40]), "cannot be"),
    "cut later": (url(saved_as("JPEG")[:-80]), "cannot be"),
    "no pixels": (url(png(8, 8)), "cannot be"),
    "no width": (url(png(0, 8)), "cannot be read"),
    "bomb": (url(png(9000, 9000)), "pixels together"),
    "bomb beyond Pillow's": (url(png(2**31 - 1, 2**31 - 1)), "cannot be read"),
    "real bomb": (url(png(3000, 3000, bytes(3000 * 9001))), "pixels together"),
    "strip": (url(png(1, 60)), "one side may be 50 times"),
    "text bomb": (url(png(8, 8, b"", chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9 << 20))))), "cannot be read"),
    "scans": (url(jpeg(200), "jpeg"), "more than 100 scans"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("model", ["run", "qwen"])
def test_what_is_no_image_is_refused_and_named(case, model, server):
    sent, reason = REFUSED[case]
    status, told = server.post("/v1/chat/completions", body(words("Which?"), part(sent), model=model))
    assert status == 400 and reason in told["error"]["message"], told
    assert "Traceback" not in json.dumps(told) and len(told["error"]["message"]) < 1000


def test_the_number_of_images_and_bytes_has_limits(server):
    def refused(asked: Any, path: str = "/v1/chat/completions") -> str:
        status, told = server.post(path, asked)
        assert status == 400, told
        return told["error"]["message"]

    assert "5 images, at most 4" in refused(body(*[part(url(GOOD))] * 5))
    assert "pixels together, at most 100000" in refused(body(*[part(url(png(250, 250, bytes(250 * 751))))] * 2))
    assert "1310720 bytes" in refused(body(part(url(bytes(1 << 20))), part(url(bytes(1 << 20)))))
    assert "262144 bytes besides its images" in refused(body(words("a" * 300_000), part(url(GOOD))))
    assert "262144 bytes besides its images" in refused(b"[" + b"1," * 400_000 + b"1]")
    assert "bytes" in refused({"model": "run", "prompt": "a" * 300_000}, "/v1/completions")
    assert "detail" in refused(body({"type": "image_url", "image_url": {"url": url(GOOD), "detail": "high"}}))
    system = [{"role": "system", "content": [part(url(GOOD))]}, {"role": "user", "content": "Which?"}]
    assert "messages" in refused(body() | {"messages": system})
    assert "stands for" in refused(body(part(url(GOOD)), words("and <image>?")))


@pytest.mark.parametrize("model", ["run", "qwen"])
def test_words_that_stand_for_images_are_no_images(model, server):
    mark = {"run": "<image>", "qwen": "<|image_pad|>"}[model]
    asked: list[tuple[str, Any]] = [
        ("/v1/chat/completions", body(words(f"{mark} Which?"), model=model)),
        ("/v1/completions", {"model": model, "prompt": f"{mark} Which?"}),
        ("/v1/embeddings", {"model": model, "input": f"{mark} Which?"}),
        ("/v1/chat/completions", body(words(f"{mark} Which?"), part(url(GOOD)), model=model)),
    ]
    if model == "qwen":
        asked += [("/v1/chat/completions", body(words("<|video_pad|>"), part(url(GOOD)), model=model))]
    for path, sent in asked:
        status, told = server.post(path, sent)
        said = told["error"]["message"]
        assert status == 400 and ("stands for" in said or "places for images" in said), (path, told)


def test_a_model_of_text_alone_refuses_images_by_name(server):
    status, told = server.post("/v1/chat/completions", body(part(url(GOOD)), words("Which?"), model="words"))
    assert status == 400 and "words does not see" in told["error"]["message"]
    status, told = server.post("/v1/chat/completions", body(words("<image> is a word here"), model="words"))
    assert status == 200, told


def test_the_server_goes_on_after_all_of_it(server, album):
    status, told = server.post("/v1/chat/completions", body(part(url((album / "0.png").read_bytes())), words("Which?")))
    assert status == 200 and told["usage"]["prompt_tokens"] > 4
