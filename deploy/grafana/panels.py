"""How a panel of the dashboard looks, so that `dashboard.py` can say only what it shows."""

from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common as build
from grafana_foundation_sdk.builders import heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")

GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "#8e8e8e"


@dataclass(frozen=True)
class Query:
    """A query and what its series are called; `{{label}}` stands for a label's value."""

    expr: str
    legend: str

    def built(self, place: int, *, as_heatmap: bool = False) -> prometheus.Dataquery:
        """Return the builder of the target at this place in its panel."""
        target = prometheus.Dataquery().expr(self.expr).legend_format(self.legend)
        target = target.ref_id(chr(ord("A") + place)).datasource(SOURCE).range()
        return target.format(PromQueryFormat.HEATMAP) if as_heatmap else target


@dataclass(frozen=True)
class Panel:
    """What a panel shows.

    Attributes:
        title: a few words.
        says: what the reader sees, and what to make of it.
        unit: Grafana's name of the unit.
        queries: one series or more each.
        width: in columns of 24.
        limits: values at which the colour changes, with the colour; the first one holds below all.
    """

    title: str
    says: str
    unit: str
    queries: tuple[Query, ...]
    width: int = 8
    limits: tuple[tuple[float | None, str], ...] = ()


def stat_panel(panel: Panel) -> stat.Panel:
    """Return one large figure, the newest."""
    reduce = build.ReduceDataOptions().calcs(["lastNotNull"])
    built = _described(stat.Panel(), panel).height(4).reduce_options(reduce)
    built = built.color_mode(common.BigValueColorMode.VALUE)
    return built.graph_mode(common.BigValueGraphMode.NONE)


def name_panel(panel: Panel) -> stat.Panel:
    """Return the names of the series: what is in their labels is what there is to see."""
    reduce = build.ReduceDataOptions().calcs(["lastNotNull"])
    built = _described(stat.Panel(), panel).height(3).reduce_options(reduce)
    built = built.graph_mode(common.BigValueGraphMode.NONE).color_mode(
        common.BigValueColorMode.NONE
    )
    return built.text_mode(common.BigValueTextMode.NAME)


def time_panel(
    panel: Panel,
    *,
    stacked: bool = False,
    steps: bool = False,
    least: float | None = 0,
    most: float | None = None,
    dashed: tuple[str, ...] = (),
    colours: dict[str, str] | None = None,
) -> timeseries.Panel:
    """Return lines over time.

    Args:
        panel: what it shows.
        stacked: the series add up to something.
        steps: a value holds until the next one.
        least: where the axis begins; None leaves it to the data.
        most: where it ends.
        dashed: series that are limits and not measurements.
        colours: of single series.
    """
    legend = build.VizLegendOptions().show_legend(True)
    legend = legend.display_mode(common.LegendDisplayMode.LIST)
    legend = legend.placement(common.LegendPlacement.BOTTOM).calcs([])
    tooltip = build.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    tooltip = tooltip.sort(common.SortOrder.DESCENDING)
    built = _described(timeseries.Panel(), panel).height(8).legend(legend).tooltip(tooltip)
    built = built.line_width(2 if not stacked else 1).fill_opacity(40 if stacked else 8)
    built = built.show_points(common.VisibilityMode.NEVER)
    if stacked:
        built = built.stacking(build.StackingConfig().mode(common.StackingMode.NORMAL))
    if steps:
        built = built.line_interpolation(common.LineInterpolation.STEP_AFTER)
    if least is not None:
        built = built.min(least)
    if most is not None:
        built = built.max(most)
    for name in dashed:
        style = {"fill": "dash", "dash": [10, 10]}
        built = built.override_by_name(
            name, [_value("custom.lineStyle", style), _value("custom.fillOpacity", 0)]
        )
    for name, colour in (colours or {}).items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        built = built.override_by_name(name, [_value("color", fixed)])
    return built


def heatmap_panel(panel: Panel) -> heatmap.Panel:
    """Return counts per bucket over time; the query gives increases by `le`."""
    (query,) = panel.queries
    colour = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Turbo")
    colour = colour.exponent(0.5).steps(64)
    axis = heatmap.YAxisConfig().unit(panel.unit)
    built = heatmap.Panel().title(panel.title).description(panel.says).datasource(SOURCE)
    built = built.with_target(query.built(0, as_heatmap=True)).span(panel.width).height(8)
    built = built.calculate(False).color(colour).y_axis(axis).hide_legend()
    return built.cell_values(heatmap.CellValues().unit("short")).show_y_histogram()


def _described(built: Any, panel: Panel) -> Any:
    """Give a builder of any kind of panel what all kinds have."""
    built = built.title(panel.title).description(panel.says).unit(panel.unit)
    built = built.datasource(SOURCE).span(panel.width)
    for place, query in enumerate(panel.queries):
        built = built.with_target(query.built(place))
    if panel.limits:
        steps = [dashboard.Threshold(value=value, color=name) for value, name in panel.limits]
        absolute = dashboard.ThresholdsMode.ABSOLUTE
        built = built.thresholds(ThresholdsConfig().mode(absolute).steps(steps))
    return built


def _value(name: str, value: object) -> dashboard.DynamicConfigValue:
    return dashboard.DynamicConfigValue(id_val=name, value=value)
