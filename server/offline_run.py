"""Many files through a model without a server: decoded side by side, computed in batches."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from server.cores import usable_cores
from server.engine import Engine
from server.errors import DeviceLost, ImageTooLarge, ServeError
from server.images import ImageLimits, decode, guard_pillow
from server.intake import DRAFT_FACTOR
from server.replies import best
from server.resizing import faster
from server.settings import Settings

AHEAD = 2
"""So many batches are decoded while one is computed."""

Decoded = Tensor | Exception


def classify_files(
    engine: Engine, settings: Settings, files: Sequence[Path], r: int, top_k: int
) -> Iterator[list[dict[str, Any]]]:
    """Yield the answers, a batch at a time, in the order of the files.

    Files are decoded with the server's limits and transform, so that answers are the server's own.
    What cannot be read, or not computed, has an `error` in place of its `predictions`.

    Args:
        engine: the model; nobody else may run it meanwhile.
        settings: the limits of images, and the batch size.
        files: to read.
        r: the degree.
        top_k: classes per image.

    Raises:
        DeviceLost: nothing can be computed any more; what was answered stays answered.
    """
    side = max(engine.loaded.input_size[1:])
    limits = ImageLimits(
        settings.max_image_bytes, settings.max_image_pixels, draft_side=DRAFT_FACTOR * side
    )
    guard_pillow(limits)
    transform = faster(engine.loaded.transform)

    def read(path: Path) -> Decoded:
        try:
            if (size := path.stat().st_size) > limits.max_bytes:  # before it is in memory
                told = f"The file has {size} bytes; at most {limits.max_bytes} are read"
                raise ImageTooLarge(f"{told}, so save it smaller or raise max_image_bytes")
            return decode(path.read_bytes(), limits, transform)
        except (ServeError, OSError) as error:
            return error

    size, remaining = settings.max_batch_size, iter(files)
    with ThreadPoolExecutor(settings.decode_workers or usable_cores()) as pool:
        waiting: deque[tuple[Path, Future[Decoded]]] = deque()

        def fill(count: int) -> None:
            waiting.extend((path, pool.submit(read, path)) for path in islice(remaining, count))

        try:
            fill((1 + AHEAD) * size)
            while waiting:
                batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                decoded = [future.result() for _, future in batch]
                fill(size)
                yield _answers(engine, [path for path, _ in batch], decoded, r, top_k)
        finally:
            pool.shutdown(cancel_futures=True)


def _answers(
    engine: Engine, files: Sequence[Path], decoded: Sequence[Decoded], r: int, top_k: int
) -> list[dict[str, Any]]:
    """Run one batch, and put each answer to its file."""
    images = [image for image in decoded if isinstance(image, Tensor)]
    try:
        outputs = iter(engine.run_blocking(images, r).outputs if images else ())
    except DeviceLost:
        raise  # nothing more can be computed, and what is left is no file's fault
    except ServeError as error:
        outputs = iter([error] * len(images))
    answers = []
    for path, image in zip(files, decoded, strict=True):
        scores = next(outputs) if isinstance(image, Tensor) else image
        about = {"file": str(path), "model": engine.loaded.digest[:12], "r": r}
        if isinstance(scores, Exception):
            answers.append(about | {"error": str(scores)})
            continue
        predictions = [
            {"label": engine.labels[index], "index": index, "score": score}
            for index, score in best(scores, top_k)
        ]
        answers.append(about | {"predictions": predictions})
    return answers
