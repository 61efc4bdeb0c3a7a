"""Makes the picture that the samples resize: a hazy landscape of 8 megapixels and about 2 MB, always the same one.

Its detail goes down to the pixel, as in a photograph: a plain gradient would be decoded several times faster, because the
blocks of its JPEG are almost empty. Needs Pillow; `scripts/samples.sh` provides it.
"""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw

WIDTH, HEIGHT = 3264, 2448
QUALITY = 93
SEED = 1769

SKY = ((64, 110, 170), (226, 214, 196))  # at the top, at the horizon
HILLS = ((0.42, (132, 148, 164)), (0.55, (92, 112, 108)), (0.68, (70, 88, 58)), (0.84, (48, 58, 34)))  # height, colour


def octave(rng: random.Random, cell: int) -> Image.Image:
    """Smooth random grey with shapes of about ``cell`` pixels."""
    size = (WIDTH // cell + 2, HEIGHT // cell + 2)
    noise = Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))
    return noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def texture(rng: random.Random, octaves: tuple[tuple[int, float], ...]) -> Image.Image:
    """Noise whose shapes become smaller from one octave to the next, each blended in with its share."""
    (first, _), *others = octaves
    grey = octave(rng, first)
    for cell, share in others:
        grey = Image.blend(grey, octave(rng, cell), share)
    return Image.merge("RGB", (grey, grey, grey))


def ridge(rng: random.Random, height: float) -> Image.Image:
    """A mask of what lies below a rugged line across the picture."""
    heights = [height + rng.uniform(-0.06, 0.06) for _ in range(5)]
    roughness = 0.03
    while len(heights) < WIDTH / 8:
        between = [(a + b) / 2 + rng.uniform(-roughness, roughness) for a, b in pairwise(heights)]
        heights = [each for pair in zip(heights, between, strict=False) for each in pair] + heights[-1:]
        roughness /= 2
    step = WIDTH / (len(heights) - 1)
    line = [(round(number * step), round(each * HEIGHT)) for number, each in enumerate(heights)]
    mask = Image.new("L", (WIDTH, HEIGHT))
    ImageDraw.Draw(mask).polygon([(0, HEIGHT), *line, (WIDTH, HEIGHT)], fill=255)
    return mask


def photograph() -> Image.Image:
    rng = random.Random(SEED)  # noqa: S311  the same picture each time is the point
    top, horizon = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in SKY)
    down = Image.linear_gradient("L").resize((WIDTH, HEIGHT))
    picture = Image.composite(horizon, top, down)
    clouds = texture(rng, ((512, 1), (256, 0.5), (64, 0.3), (16, 0.1)))
    picture = Image.blend(picture, ImageChops.screen(picture, clouds), 0.5)
    for height, colour in HILLS:
        ground = texture(rng, ((128, 1), (32, 0.5), (8, 0.5), (4, 0.4), (2, 0.3), (1, 0.1)))
        ground = Image.blend(Image.new("RGB", (WIDTH, HEIGHT), colour), ground, 0.45)
        picture = Image.composite(ground, picture, ridge(rng, height))
    return Image.blend(picture, texture(rng, ((2, 1), (1, 0.5))), 0.05)  # the sensor's own noise


if __name__ == "__main__":
    photograph().save(Path(sys.argv[1]), format="JPEG", quality=QUALITY)
