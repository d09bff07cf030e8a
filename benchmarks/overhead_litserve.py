"""LitServe's side of `benchmarks/overhead.py`: a module, because its workers import it."""

from base64 import b64decode
from typing import Any

import litserve  # type: ignore[import-not-found]

from benchmarks.overhead_servers import ANSWER


class NullAPI(litserve.LitAPI):  # type: ignore[misc]
    """Answers a constant, in the three steps that LitServe's documentation shows."""

    def setup(self, device: str) -> None:
        """There is nothing to load."""

    def decode_request(self, request: dict[str, str]) -> bytes:
        """The image's bytes; they are not looked at."""
        return b64decode(request["image"])

    def predict(self, image: bytes) -> dict[str, Any]:
        """The same for all images."""
        return ANSWER

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """It is one already."""
        return output
