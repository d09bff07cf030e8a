"""What the server answers, from what it knows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.batcher import ItemResult
from server.intake import Answer
from server.replies import image_result
from server.schemas import ImageResult

# Few different values, so that many classes are equally likely.
SCORES = st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5]), min_size=1, max_size=30)


@given(SCORES, st.integers(1, 40))
def test_the_likeliest_come_first_and_of_equal_ones_the_lower_index(
    scores: list[float], top_k: int
) -> None:
    """The same as sorting all classes, however few are asked for."""
    labels = tuple(f"class {index}" for index in range(len(scores)))
    output = np.array(scores, np.float32)
    answer = Answer("cat.jpg", ItemResult(output, 0, 1, 0.0, 0.0))
    entry = image_result(answer, labels, top_k, "id")
    result = ImageResult.model_validate(entry, strict=True)
    expected = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:top_k]
    assert [p.index for p in result.predictions] == expected
    assert [p.score for p in result.predictions] == [scores[index] for index in expected]
    assert [p.label for p in result.predictions] == [labels[index] for index in expected]
