"""LitServe's side of `benchmarks/overhead.py`: a module, because its workers import it."""

from base64 import b64decode
from typing import Any

import litserve
from torch import Tensor

from benchmarks.overhead_handler import ANSWER, Decoder


class NullAPI(litserve.LitAPI):  # type: ignore[misc]
    """Decodes and answers a constant, in the three steps that LitServe's documentation shows."""

    def setup(self, device: str) -> None:
        """Make the decoder, in the worker."""
        self._decode = Decoder()

    def decode_request(self, request: dict[str, str]) -> Tensor:
        """The image's pixels."""
        return self._decode(b64decode(request["image"]))

    def predict(self, image: Tensor) -> dict[str, Any]:
        """The same for all images."""
        return ANSWER

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """It is one already."""
        return output
