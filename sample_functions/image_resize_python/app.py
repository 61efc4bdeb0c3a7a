"""Scales a photograph to several widths, as a service does that shows pictures: decode, resize, encode, on one thread."""

import io
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
PICTURE = HERE / "picture/photograph.jpg"

sys.path.insert(0, str(HERE / "python"))
try:
    from PIL import Image
except ImportError as error:
    message = "Pillow cannot be loaded; run 'make samples' in the project's root"
    raise ImportError(message) from error
if not PICTURE.is_file():
    message = "the picture is not there yet; run 'make samples' in the project's root"
    raise FileNotFoundError(message)


def handler(event, context):
    wall, cpu = time.perf_counter(), time.process_time()
    with Image.open(PICTURE) as picture:
        width, height = picture.size
        sizes = [(wanted, round(height * wanted / width)) for wanted in event["widths"]]
        if event.get("shrink_on_load", False):
            # A JPEG can be decoded at a half, a quarter or an eighth of its size: pixels that are thrown away cost nothing.
            picture.draft("RGB", max(sizes))
        picture.load()
        made = [scaled(picture, size) for size in sizes]

    wall_ms = (time.perf_counter() - wall) * 1000
    cpu_ms = (time.process_time() - cpu) * 1000
    return {
        "source": {"bytes": PICTURE.stat().st_size, "width": width, "height": height},
        "made": made,
        "cpu_ms": round(cpu_ms, 1),
        "wall_ms": round(wall_ms, 1),
        "cpu_share": round(cpu_ms / wall_ms, 3),
    }


def scaled(picture, size):
    jpeg = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(jpeg, format="JPEG", quality=85)
    return {"width": size[0], "height": size[1], "bytes": jpeg.tell()}
