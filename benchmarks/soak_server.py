"""`tocom serve` whose decoder and model fail at random: the server under test of `soak.py`.

    python benchmarks/soak_server.py DECODE_SHARE FORWARD_SHARE SEED FLAGS...

The faults are put around the functions from outside, before the server is started; the product
knows nothing of them. With `lost-when-ready` in place of FORWARD_SHARE the first forward pass after
the start-up raises what PyTorch raises when a device is lost, and so does each one after it.
"""

import random
import sys
import threading
from typing import Any

from torch import Tensor

LOST = "lost-when-ready"


class InjectedFault(Exception):
    """A failure that nobody expects, from inside of a library."""


def inject(decode_share: float, forward: str, seed: int) -> None:
    """Let so many calls of the decoder and of the model fail."""
    from server import images, intake
    from server.forward import Forward

    generator, lock = random.Random(seed), threading.Lock()
    decode, classify = images.decode, Forward.classify
    share = 0.0 if forward == LOST else float(forward)

    def drawn(share: float) -> bool:
        with lock:
            return generator.random() < share

    def faulty_decode(*arguments: Any) -> object:
        if drawn(decode_share):
            raise InjectedFault("the decoder failed")
        return decode(*arguments)

    def faulty_classify(self: Forward, pixels: Tensor, r: int, **how: Any) -> Tensor:
        if forward == LOST and how.get("on_part"):  # which the warm-up does not give
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if drawn(share):
            raise InjectedFault("the forward pass failed")
        scores = classify(self, pixels, r, **how)
        if drawn(share):
            scores = scores.clone()  # out of inference mode
            scores[0] = float("nan")
        return scores

    setattr(intake, "decode", faulty_decode)  # noqa: B010
    setattr(Forward, "classify", faulty_classify)  # noqa: B010


def main() -> int:
    """Serve until told to stop."""
    from server.serving import main as serve

    decode_share, forward, seed, *flags = sys.argv[1:]
    inject(float(decode_share), forward, int(seed))
    return serve(flags)


if __name__ == "__main__":
    sys.exit(main())
