// The degree: what each one wins and costs, a slider that pins it, and the way back to auto.

import { call, json } from "./api.js";
import { announce, clockTime, draw, element, make, number, percent, set } from "./text.js";

const THUMB = 20; // px, as in the style sheet: bars stand where the thumb stops
const HEIGHT = 196, SPEED_TOP = 122, SPEED_BASE = 172, ACCURACY_TOP = 38, ACCURACY_BASE = 76;
const PATIENCE_MS = 300; // arrow keys move the slider in steps; only where it stops is pinned

const slider = element("degree");
let status = null;
let chosen = 0; // index into the levels, where the slider stands
let touched = false;
let timer = 0;
let pinEnds = null;

export const levels = () => status?.levels ?? [];
export const presentDegree = () => status?.r ?? 0;

export function start() {
  slider.addEventListener("input", () => {
    touched = true;
    chosen = Number(slider.value);
    render();
    clearTimeout(timer);
    timer = setTimeout(pin, PATIENCE_MS);
  });
  element("auto").addEventListener("click", () => change("compression?mode=auto", "The server picks the degree again."));
  new ResizeObserver(render).observe(element("levels"));
}

export async function refresh() {
  const answer = await json("compression");
  if (!touched) take(answer);
}

// A snapshot says the degree a second after it changed; the rest is asked for when it does.
export function follow(snapshot) {
  if (!status || touched) return;
  const moved = snapshot.r !== status.r || snapshot.mode !== status.mode;
  if (moved || (snapshot.pinned_ttl_s === null) !== (status.pinned_ttl_s === null)) refresh().catch(() => {});
}

async function pin() {
  const seconds = element("ttl").value;
  const r = levels()[chosen].r;
  await change(`compression?r=${r}${seconds ? `&ttl_s=${seconds}` : ""}`, `Pinned at r = ${r}.`);
}

async function change(path, told) {
  clearTimeout(timer);
  const problem = element("dial-problem");
  try {
    const answer = await (await call(path, { method: "PUT" })).json();
    touched = false;
    problem.hidden = true;
    take(answer);
    announce(told);
  } catch (error) {
    touched = false;
    problem.textContent = error.status ? error.message : "The server cannot be reached.";
    problem.hidden = false;
    if (status) take(status);
  }
}

function take(answer) {
  status = answer;
  const left = answer.pinned_ttl_s;
  // Asked for again and again, the rounded end must not waver.
  if (left === null) pinEnds = null;
  else if (pinEnds === null || Math.abs(pinEnds - Date.now() - left * 1000) > 1500) pinEnds = Date.now() + left * 1000;
  chosen = Math.max(0, status.levels.findIndex(({ r }) => r === status.r));
  slider.max = status.levels.length - 1;
  slider.value = chosen;
  slider.disabled = status.levels.length < 2;
  element("auto").disabled = status.mode === "auto";
  element("mode").dataset.mode = status.mode;
  set("mode", modeText());
  render();
  table();
}

export function modeText() {
  if (!status) return "";
  if (status.mode === "shadow") return `shadow, would take r = ${status.shadow.r}`;
  if (status.mode !== "pinned") return "auto";
  return pinEnds === null ? "pinned" : `pinned until ${clockTime(new Date(pinEnds))}`;
}

function words(level) {
  const accuracy = level.expected_accuracy === null ? "expected accuracy unknown" : `expected accuracy ${percent(level.expected_accuracy)} %`;
  return `r = ${level.r}, ${number(level.relative_throughput)} times as fast as without, ${accuracy}`;
}

function allowedText(level) {
  if (level.allowed) return "may be chosen";
  return level.pays ? "outside of its bounds" : "not chosen: no faster here";
}

function render() {
  const level = levels()[chosen];
  if (!level) return;
  slider.setAttribute("aria-valuetext", words(level));
  set("level-r", String(level.r));
  set("level-speed", number(level.relative_throughput));
  set("level-rate", `${number(level.images_per_s)} images/s${level.measured ? "" : ", estimated"}`);
  set("level-accuracy", percent(level.expected_accuracy));
  const live = level.agreement;
  set("level-agreement", live ? `${percent(live.agreement)} % agree live, of ${live.samples}` : "");
  set("level-allowed", allowedText(level));
  strips();
}

function strips() {
  const svg = element("levels");
  const width = svg.clientWidth;
  if (!width) return;
  const all = levels();
  const x = (n) => THUMB / 2 + (width - THUMB) * (all.length > 1 ? n / (all.length - 1) : 0.5);
  const spacing = (width - THUMB) / Math.max(1, all.length - 1);
  const thick = Math.max(4, Math.min(24, spacing * 0.62));
  const speed = scale(all.map((level) => level.relative_throughput), SPEED_TOP, SPEED_BASE, 0);
  const parts = [
    draw("rect", { x: x(chosen) - spacing / 2, y: 0, width: spacing, height: HEIGHT, rx: 5, class: "chosen" }),
    draw("text", { x: 0, y: 11 }, "Expected accuracy"),
    draw("text", { x: 0, y: SPEED_TOP - 22 }, "Speed, r = 0 is 1 ×"),
    draw("line", { x1: 0, x2: width, y1: SPEED_BASE + 0.5, y2: SPEED_BASE + 0.5, class: "base" }),
  ];
  const known = all.flatMap((level, n) => (level.expected_accuracy === null ? [] : [[n, level]]));
  if (known.length) {
    const accuracy = scale(known.map(([, level]) => level.expected_accuracy), ACCURACY_TOP, ACCURACY_BASE);
    parts.push(draw("path", { class: "path", d: "M" + known.map(([n, level]) => `${x(n)} ${accuracy(level.expected_accuracy)}`).join("L") }));
    for (const [n, level] of known)
      parts.push(draw("circle", { cx: x(n), cy: accuracy(level.expected_accuracy), r: n === chosen ? 5 : 3, class: `point${level.r === status.r ? " present" : ""}` }));
    const here = all[chosen].expected_accuracy;
    if (here !== null) parts.push(label(x(chosen), accuracy(here) - 10, `${percent(here)} %`, width));
  } else {
    parts.push(draw("text", { x: 0, y: 56 }, "not known for this model"));
  }
  all.forEach((level, n) => {
    const y = speed(level.relative_throughput);
    const style = `bar${level.allowed ? "" : " off"}${level.r === status.r ? " present" : ""}`;
    parts.push(draw("rect", { x: x(n) - thick / 2, y, width: thick, height: Math.max(1, SPEED_BASE - y), rx: 2, class: style }));
    const every = spacing < 22 ? Math.ceil(22 / spacing) : 1;
    if (n === chosen || (n % every === 0 && Math.abs(n - chosen) >= every))
      parts.push(draw("text", { x: x(n), y: SPEED_BASE + 17, "text-anchor": "middle", class: n === chosen ? "strong" : "" }, String(level.r)));
  });
  parts.push(label(x(chosen), speed(all[chosen].relative_throughput) - 5, `${number(all[chosen].relative_throughput)} ×`, width));
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.replaceChildren(...parts);
  svg.setAttribute("aria-label", `Speed and accuracy of ${all.length} degrees. Present: ${words(all.find(({ r }) => r === status.r) ?? all[chosen])}.`);
}

function label(x, y, text, width) {
  const anchor = x < 24 ? "start" : x > width - 24 ? "end" : "middle";
  const edge = anchor === "start" ? 0 : anchor === "end" ? width : x;
  return draw("text", { x: edge, y, "text-anchor": anchor, class: "strong" }, text);
}

function scale(values, top, base, from) {
  const high = Math.max(...values);
  const low = from ?? Math.min(...values);
  return (value) => (high === low ? (top + base) / 2 : base - ((value - low) / (high - low)) * (base - top));
}

function table() {
  const rows = levels().map((level) => {
    const live = level.agreement;
    const cells = [level.r, `${number(level.relative_throughput)} ×`, number(level.images_per_s),
      level.expected_accuracy === null ? "unknown" : `${percent(level.expected_accuracy)} %`,
      live ? `${percent(live.agreement)} % of ${live.samples}` : "–", level.allowed ? "yes" : "no"];
    return make("tr", level.r === status.r ? { class: "present" } : {}, ...cells.map((text) => make("td", {}, String(text))));
  });
  element("levels-table").tBodies[0].replaceChildren(...rows);
}
