"""Between detector and classifier: cuts the lines of text out of the page."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from rapidocr_onnxruntime.ch_ppocr_det import TextDetector
from rapidocr_onnxruntime.ch_ppocr_det.utils import DBPostProcess
from rapidocr_onnxruntime.main import DEFAULT_CFG_PATH, RapidOCR
from rapidocr_onnxruntime.utils import read_yaml
from roost.runtimes import Model, Request

HEIGHT = 48
VIEW_WIDTH = 192
LEAST_WIDTH = 320

_SETTINGS = ("thresh", "box_thresh", "max_candidates", "unclip_ratio", "use_dilation", "score_mode")


class Lines(Model):
    """``page`` and ``likely`` give ``corners`` FP32 [lines, 4, 2], and each line as the two other nets want it.

    Where there is no line the nets get a blank one, as an ensemble runs all of its steps; ``corners`` tells.
    """

    def load(self) -> None:
        """Takes the parts of the library that are not nets."""
        settings = read_yaml(DEFAULT_CFG_PATH)["Det"]
        self._find = DBPostProcess(**{name: settings[name] for name in _SETTINGS})
        # Made without their constructors, which would load the nets.
        self._detector, self._library = TextDetector.__new__(TextDetector), RapidOCR.__new__(RapidOCR)

    def predict(self, request: Request) -> dict[str, Any]:
        """Lines from top to bottom."""
        page = request["page"]
        boxes, _ = self._find(request["likely"], page.shape[:2])
        boxes = self._detector.filter_tag_det_res(boxes, page.shape[:2])
        if len(boxes):
            boxes = self._library.sorted_boxes(boxes)
            lines = self._library.get_crop_img_list(page, boxes)
        else:
            lines = [np.zeros((HEIGHT, LEAST_WIDTH, 3), np.uint8)]
        width = int(HEIGHT * max(LEAST_WIDTH / HEIGHT, *(line.shape[1] / line.shape[0] for line in lines)))
        strips, widths = zip(*(fitted(line, width) for line in lines), strict=True)
        return {
            "corners": np.array(boxes, np.float32).reshape(-1, 4, 2),
            "views": np.stack([fitted(line, VIEW_WIDTH)[0] for line in lines]),
            "strips": np.stack(strips),
            "widths": np.array(widths, np.int32),
        }


def fitted(line: Any, width: int) -> tuple[Any, int]:
    """A line FP32 [3, 48, width] with values from -1 to 1 and zeros behind its end, and where that is."""
    used = min(width, math.ceil(HEIGHT * line.shape[1] / line.shape[0]))
    scaled = cv2.resize(line, (used, HEIGHT)).astype(np.float32).transpose(2, 0, 1)
    strip = np.zeros((3, HEIGHT, width), np.float32)
    strip[:, :, :used] = (scaled / 255 - 0.5) / 0.5
    return strip, used
