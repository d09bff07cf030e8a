"""What does it cost? The degree, accuracy expected and measured live, agreement."""

from typing import Any

from deploy.grafana.panels import GREY, Panel, Query, time_panel
from deploy.grafana.queries import HERE, rate, weighted_by_images

TITLE = "What does it cost?"


def row() -> list[Any]:
    """Return the builders of the panels, in their order."""
    panels: list[Any] = []
    degree = Panel(
        "Degree over time",
        "Tokens merged away per layer for the next batch. It rises when the load does not fit a "
        "lower degree, and returns by itself. `pinned` is 1 while somebody holds it.",
        "short",
        (
            Query(f"tocom_compression_degree{{{HERE}}}", "r {{instance}}"),
            Query(f'max(tocom_compression_mode{{mode="pinned", {HERE}}})', "pinned"),
        ),
        width=12,
    )
    panels.append(time_panel(degree, steps=True, colours={"pinned": GREY}))
    accuracy = Panel(
        "Accuracy of what was served",
        "Top-1, weighted by the images that each degree served: expected from the evaluation, and "
        "live: the accuracy of r_source times the agreement measured on this very traffic. Only "
        "images of degrees of which the figure is known count.",
        "percentunit",
        (
            Query(weighted_by_images("tocom_degree_expected_accuracy"), "expected"),
            Query(weighted_by_images("tocom_live_accuracy"), "live"),
            Query(f"max(max_over_time(tocom_expected_accuracy{{{HERE}}}[$__range]))", "at best"),
        ),
        width=12,
    )
    panels.append(time_panel(accuracy, least=None, dashed=("at best",)))
    agreement = Panel(
        "Agreement with r_source",
        "Share of the compared images with the same class as without compression, by degree, with "
        "the ends of the 95 % interval. A wide interval has few comparisons behind it.",
        "percentunit",
        (
            Query(f"avg by (r) (tocom_agreement_ratio{{{HERE}}})", "r={{r}}"),
            Query(f"min by (r) (tocom_agreement_low{{{HERE}}})", "r={{r}} low"),
            Query(f"max by (r) (tocom_agreement_high{{{HERE}}})", "r={{r}} high"),
        ),
        width=12,
    )
    panels.append(time_panel(agreement, least=None, most=1))
    by_degree = Panel(
        "Images by degree",
        "Images per second through the model at each degree: how much of the traffic paid.",
        "cps",
        (Query(rate(f"tocom_inferred_images_total{{{HERE}}}", by="r"), "r={{r}}"),),
        width=12,
    )
    panels.append(time_panel(by_degree, stacked=True))
    return panels
