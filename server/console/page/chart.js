// Time series as SVG: axes, units, a crosshair over all charts, and words for who cannot see them.

import { announce, draw, make } from "./text.js";

const SPAN_S = 180;
const LEFT = 44, RIGHT = 10, TOP = 10, BOTTOM = 22;
const GAP_S = 3.5; // no line over a gap in the data

const charts = [];
let samples = [];
let cross = null; // index of the sample that is looked at, in all charts

export class Chart {
  // series: [{ name, style, of: (sample) => number | null, step, area }], least: smallest top of the axis,
  // whole: ticks at whole numbers only.
  constructor(parent, { title, unit, series, format, least = 1, most = null, whole = false, bottom = () => 0 }) {
    Object.assign(this, { title, unit, series, format, least, most, whole, bottom, limit: null });
    this.legend = make("div", { class: "legend" });
    this.values = series.map(({ name, style }) => {
      const value = make("b");
      const key = draw("svg", { viewBox: "0 0 18 8", "aria-hidden": "true" },
        draw("path", { d: "M1 4H17", class: `line ${style}` }));
      this.legend.append(make("span", {}, key, name, " ", value));
      return value;
    });
    this.svg = draw("svg", { class: "plot", role: "img", tabindex: "0", "aria-label": title });
    this.tip = make("div", { class: "tip", "aria-hidden": "true", hidden: "" });
    const caption = make("figcaption", {},
      make("div", { class: "title" }, title, " ", make("span", { class: "unit" }, unit)), this.legend);
    parent.append(make("figure", { class: "chart" }, caption, this.svg, this.tip));
    this.svg.addEventListener("pointermove", (event) => look(this.indexAt(event.offsetX), this));
    this.svg.addEventListener("pointerdown", (event) => look(this.indexAt(event.offsetX), this));
    this.svg.addEventListener("pointerleave", () => look(null, this));
    this.svg.addEventListener("blur", () => look(null, this));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
    new ResizeObserver(() => this.render()).observe(this.svg);
    charts.push(this);
  }

  onKey(event) {
    const last = samples.length - 1;
    const from = cross ?? last + 1;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last, Escape: null }[event.key];
    if (to === undefined || last < 0) return;
    event.preventDefault();
    look(to === null ? null : Math.max(0, Math.min(last, to)), this);
    if (to !== null) announce(`${ago(samples[cross])}: ${this.words(samples[cross])}`);
  }

  words(sample) {
    return this.series.map(({ name, of }) => {
      const value = of(sample);
      return `${name} ${value === null ? "unknown" : this.format(value)}`;
    }).join(", ") + ` ${this.unit}`;
  }

  x(at) {
    return LEFT + (this.width - LEFT - RIGHT) * (1 - (samples[samples.length - 1].at - at) / SPAN_S);
  }

  y(value) {
    return this.height - BOTTOM - (this.height - TOP - BOTTOM) * ((value - this.low) / (this.high - this.low));
  }

  indexAt(x) {
    if (!samples.length) return null;
    let best = null, distance = 12;
    samples.forEach((sample, index) => {
      const away = Math.abs(this.x(sample.at) - x);
      if (away < distance) [best, distance] = [index, away];
    });
    return best;
  }

  render() {
    this.width = this.svg.clientWidth;
    this.height = this.svg.clientHeight;
    if (!this.width) return;
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    const known = this.series.flatMap(({ of }) => samples.map(of)).filter((value) => value !== null);
    this.low = this.bottom(known);
    const top = Math.max(this.least, ...known, this.limit && this.limit < 3 * Math.max(...known, 0) ? this.limit : 0);
    const rough = niceStep((top - this.low) / 3);
    const step = this.whole ? Math.ceil(rough) : rough;
    this.high = this.most ?? this.low + Math.ceil((top - this.low) / step - 1e-9) * step;
    const parts = this.axes(step);
    if (samples.length) parts.push(...this.lines(), ...this.crosshair());
    if (this.limit !== null && this.limit <= this.high)
      parts.push(draw("text", { x: LEFT + 4, y: this.y(this.limit) - 5, class: "limit-text" }, this.limitName));
    if (!known.length)
      parts.push(draw("text", { x: (LEFT + this.width) / 2, y: this.height / 2, "text-anchor": "middle" }, "no data yet"));
    this.svg.replaceChildren(...parts);
    const shown = samples[cross ?? samples.length - 1];
    this.values.forEach((node, n) => {
      const value = shown ? this.series[n].of(shown) : null;
      node.textContent = value === null ? "–" : this.format(value);
    });
    this.describe(known);
  }

  axes(step) {
    const parts = [];
    for (let value = this.low; value <= this.high + step / 1e3; value += step) {
      const y = Math.round(this.y(value)) + 0.5;
      parts.push(draw("line", { x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y, class: value === this.low ? "axis" : "grid" }));
      parts.push(draw("text", { x: LEFT - 8, y: y + 4, "text-anchor": "end" }, tick(value, step, this.high)));
    }
    for (const [seconds, name] of [[180, "−3 min"], [120, "−2"], [60, "−1"], [0, "now"]]) {
      const x = LEFT + (this.width - LEFT - RIGHT) * (1 - seconds / SPAN_S);
      const anchor = seconds === 180 ? "start" : seconds ? "middle" : "end";
      parts.push(draw("text", { x, y: this.height - 5, "text-anchor": anchor }, name));
    }
    if (this.limit !== null && this.limit <= this.high) {
      const y = this.y(this.limit);
      parts.push(draw("line", { x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y, class: "limit" }));
    }
    return parts;
  }

  lines() {
    const parts = [];
    for (const { of, style, step, area } of this.series) {
      const base = this.y(this.low);
      let line = "", filled = "", before = null, first = 0, last = 0;
      const close = () => { if (before && area) filled += `L${last} ${base}L${first} ${base}Z`; };
      for (const sample of samples) {
        const value = of(sample);
        if (value === null) { close(); before = null; continue; }
        const x = this.x(sample.at).toFixed(1), y = this.y(value).toFixed(1);
        const joined = before && sample.at - before.at < GAP_S;
        if (!joined) { close(); first = x; }
        const move = joined ? (step ? `H${x}V${y}` : `L${x} ${y}`) : `M${x} ${y}h0`; // a lone point is a dot
        line += move; filled += move;
        before = sample; last = x;
      }
      close();
      if (area) parts.push(draw("path", { d: filled, class: `area ${style}` }));
      parts.push(draw("path", { d: line, class: `line ${style}` }));
    }
    return parts.sort((a, b) => a.classList.contains("line") - b.classList.contains("line"));
  }

  crosshair() {
    const sample = samples[cross];
    if (!sample) return [];
    const x = this.x(sample.at);
    const parts = [draw("line", { x1: x, x2: x, y1: TOP, y2: this.height - BOTTOM, class: "cross" })];
    for (const { of, style } of this.series) {
      const value = of(sample);
      if (value !== null) parts.push(draw("circle", { cx: x, cy: this.y(value), r: 4, class: `mark ${style}` }));
    }
    return parts;
  }

  showTip() {
    const sample = samples[cross];
    this.tip.hidden = !sample;
    if (!sample) return;
    const rows = this.series.map(({ name, of }) => {
      const value = of(sample);
      return make("div", {}, `${name} `, make("b", {}, value === null ? "–" : this.format(value)));
    });
    this.tip.replaceChildren(make("div", {}, ago(sample)), ...rows);
    const [plot, figure] = [this.svg, this.svg.parentNode].map((node) => node.getBoundingClientRect());
    const at = plot.left - figure.left + this.x(sample.at);
    const right = at + 12 + this.tip.offsetWidth < figure.width;
    const left = right ? at + 12 : at - 12 - this.tip.offsetWidth;
    this.tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(plot.top - figure.top + TOP)}px)`;
  }

  describe(known) {
    const now = samples[samples.length - 1];
    if (!now) return;
    const range = known.length ? `; between ${this.format(Math.min(...known))} and ${this.format(Math.max(...known))} over the last three minutes` : "";
    this.svg.setAttribute("aria-label", `${this.title}. Now: ${this.words(now)}${range}. Arrow keys look back.`);
  }
}

export function showHistory(snapshots) {
  samples = snapshots;
  trim();
}

export function add(snapshot) {
  samples.push(snapshot);
  trim();
}

function trim() {
  const oldest = (samples[samples.length - 1]?.at ?? 0) - SPAN_S;
  const before = samples.length;
  samples = samples.filter(({ at }) => at >= oldest);
  if (cross !== null) cross = Math.max(0, cross - (before - samples.length));
  for (const chart of charts) chart.render();
}

function look(index, chart) {
  cross = index;
  for (const one of charts) {
    one.render();
    if (one === chart) one.showTip();
    else one.tip.hidden = true;
  }
}

function ago(sample) {
  const seconds = Math.round(samples[samples.length - 1].at - sample.at);
  return seconds ? `${seconds} s ago` : "now";
}

function niceStep(rough) {
  const size = 10 ** Math.floor(Math.log10(rough || 1));
  return [1, 2, 2.5, 5, 10].map((n) => n * size).find((n) => n >= rough - 1e-12);
}

function tick(value, step, high) {
  if (high >= 10_000) return value ? `${+(value / 1000).toFixed(1)}k` : "0";
  return step < 1 ? value.toFixed(step < 0.1 ? 2 : 1).replace(/\.0$/, "") : `${+value.toFixed(1)}`;
}
