"""The first step: from an image file to what the detector looks at."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from rapidocr_onnxruntime.ch_ppocr_det.utils import DetPreProcess
from rapidocr_onnxruntime.main import DEFAULT_CFG_PATH
from rapidocr_onnxruntime.utils import (
    LoadImage,
    LoadImageError,
    add_round_letterbox,
    increase_min_side,
    read_yaml,
    reduce_max_side,
)
from rapidocr_onnxruntime.utils.process_img import ResizeImgError
from roost.core.errors import InvalidArgument
from roost.runtimes import Model, Request

# Pillow refuses images with more than twice as many: a small file may hold a very large one.
Image.MAX_IMAGE_PIXELS = 20_000_000

_UNREADABLE = (OSError, ValueError, SyntaxError, LoadImageError, Image.DecompressionBombError)


class Page(Model):
    """``image`` BYTES [1] gives ``page`` UINT8 [height, width, 3], ``pixels`` FP32 [1, 3, ...] and ``fit`` FP32 [5]."""

    def load(self) -> None:
        """Reads the library's own settings."""
        config = read_yaml(DEFAULT_CFG_PATH)
        self._limits = config["Global"]
        self._side = {name: config["Det"][name] for name in ("limit_side_len", "limit_type")}

    def predict(self, request: Request) -> dict[str, Any]:
        """The library's preparation of an image, without its nets."""
        image = self._read(request["image"][0])
        height, width = image.shape[:2]
        page, scale_y, scale_x = self._scaled(image)
        page, top = self._padded(page)
        pixels = DetPreProcess(**self._side)(page)
        return {"page": page, "pixels": pixels, "fit": np.array([top, scale_x, scale_y, width, height], np.float32)}

    def _read(self, data: bytes) -> Any:
        try:
            image = LoadImage()(data)
        except _UNREADABLE as error:
            raise InvalidArgument(f"not an image that can be read ({type(error).__name__})") from None
        if image.dtype != np.uint8:
            raise InvalidArgument("images have to have 8 bits a channel")
        return image

    def _scaled(self, image: Any) -> tuple[Any, float, float]:
        largest, least = self._limits["max_side_len"], self._limits["min_side_len"]
        page, scale_y, scale_x = image, 1.0, 1.0
        try:
            if max(page.shape[:2]) > largest:
                page, scale_y, scale_x = reduce_max_side(page, largest)
            if min(page.shape[:2]) < least:
                page, scale_y, scale_x = increase_min_side(page, least)
        except ResizeImgError:
            raise InvalidArgument("the image is too narrow") from None
        return page, scale_y, scale_x

    def _padded(self, page: Any) -> tuple[Any, int]:
        """Puts space above and below of what is flat, which the detector would miss otherwise."""
        height, width = page.shape[:2]
        least, flat = self._limits["min_height"], self._limits["width_height_ratio"]
        if height > least and (flat == -1 or width / height <= flat):
            return page, 0
        top = abs(2 * max(int(width / flat), least) - height) // 2
        return add_round_letterbox(page, (top, top, 0, 0)), top
