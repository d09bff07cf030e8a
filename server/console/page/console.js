// The console: wires the parts to the page and to the server's events.

import { call, json } from "./api.js";
import { add, Chart, showHistory } from "./chart.js";
import * as dial from "./dial.js";
import { paintExample } from "./example.js";
import * as picture from "./picture.js";
import { follow } from "./stream.js";
import { announce, element, make, milliseconds, number, percent, set } from "./text.js";

const LEVELS_EVERY_MS = 10_000;
const OUTCOMES = { ok: "classified", shed: "shed", expired: "expired", bad_image: "unreadable", abandoned: "abandoned", failed: "failed", draining: "refused while draining" };

let slo = Infinity;
let classifying = 0;

// --- Charts ---------------------------------------------------------------------------------------

const grid = element("charts");
const more = element("more");
const rate = (value) => number(value);
new Chart(grid, { title: "Load", unit: "images/s", format: rate, series: [
  { name: "offered", style: "first", area: true, of: (s) => s.offered_per_s },
  { name: "classified", style: "second", of: (s) => s.answered_per_s },
  { name: "refused", style: "third", of: (s) => s.refused_per_s },
] });
const latency = new Chart(grid, { title: "Latency", unit: "ms", format: milliseconds, least: 10, series: [
  { name: "p50", style: "third", of: (s) => s.latency_ms?.p50 ?? null },
  { name: "p95", style: "first", area: true, of: (s) => s.latency_ms?.p95 ?? null },
  { name: "p99", style: "second", of: (s) => s.latency_ms?.p99 ?? null },
] });
new Chart(grid, { title: "Queue", unit: "images", format: rate, least: 3, whole: true, series: [
  { name: "waiting", style: "first", area: true, of: (s) => s.queue_length },
  { name: "in batches", style: "second", of: (s) => s.in_flight },
  { name: "decoding", style: "third", of: (s) => s.decoding },
] });
new Chart(grid, { title: "Degree", unit: "r", format: String, least: 4, whole: true, series: [
  { name: "r", style: "first", area: true, step: true, of: (s) => s.r },
] });
const floor = (values) => (values.length ? Math.max(0, Math.floor(Math.min(...values) / 5 - 0.4) * 5) : 0);
new Chart(more, { title: "Accuracy", unit: "%", format: (v) => v.toFixed(1), least: 100, most: 100, bottom: floor, series: [
  { name: "expected", style: "first", step: true, of: (s) => share(s.expected_accuracy) },
  { name: "live agreement", style: "second", of: (s) => share(s.agreement?.agreement) },
] });
new Chart(more, { title: "Batch size", unit: "images, mean", format: rate, least: 3, whole: true, series: [
  { name: "size", style: "first", area: true, of: (s) => s.batch_size },
] });
more.append(element("outcomes").closest("section"));

function share(value) {
  return value === null || value === undefined ? null : value * 100;
}

// --- Events ---------------------------------------------------------------------------------------

function onEvent(name, data) {
  if (name === "history") {
    slo = data.slo_ms;
    latency.limit = slo;
    latency.limitName = `objective ${number(slo)} ms`;
    showHistory(data.snapshots);
    connected();
  } else {
    add(data);
  }
  const now = name === "history" ? data.snapshots.at(-1) : data;
  if (now) showNow(now);
}

function showNow(now) {
  const kind = now.draining ? "lost" : now.ready ? "live" : "wait";
  showState(kind, now.draining ? "Draining: the server is shutting down" : now.ready ? "Live" : "Not ready: warming up or failing");
  set("now-offered", number(now.offered_per_s));
  set("now-p95", milliseconds(now.latency_ms?.p95));
  element("now-p95").closest("div").classList.toggle("late", (now.latency_ms?.p95 ?? 0) > slo);
  set("now-slo", `objective ${number(slo)} ms`);
  set("now-queue", String(now.queue_length));
  set("now-r", String(now.r));
  set("now-mode", now.mode === "auto" ? `auto, ${now.reason}` : dial.modeText() || now.mode);
  set("now-accuracy", percent(now.expected_accuracy));
  set("now-agreement", now.agreement ? `${percent(now.agreement.agreement)} % agree live` : "");
  set("now-refused", number(now.refused_per_s));
  dial.follow(now);
  outcomes(now.outcomes);
}

function outcomes(counts) {
  const rows = Object.entries(OUTCOMES).filter(([name]) => counts[name] || name === "ok" || name === "shed");
  const all = Math.max(1, Object.values(counts).reduce((sum, count) => sum + count, 0));
  const bad = ["shed", "expired", "failed"];
  element("outcomes").replaceChildren(...rows.map(([name, text]) => {
    const count = counts[name] ?? 0;
    const bar = make("span", { class: "fill" });
    bar.style.width = `${(100 * count) / all}%`;
    return make("div", bad.includes(name) ? { class: "bad" } : {}, make("dt", {}, text), make("dd", {}, count.toLocaleString("en")),
      make("dd", { class: "track", "aria-hidden": "true" }, bar));
  }));
}

function showState(kind, text) {
  element("state").dataset.kind = kind;
  set("state-text", text);
}

// --- What is served -------------------------------------------------------------------------------

function connected() {
  json("model").then((model) => {
    const bank = model.bank ? `bank of ${model.bank.num_groups} degrees` : "no bank";
    set("model", `${model.name} · ${model.labels.length} classes · ${model.input_size[2]} px · ${bank} · ${model.backend} on ${model.device}`);
  }).catch(() => {});
  dial.refresh().catch(() => {});
}

setInterval(() => { if (!document.hidden) dial.refresh().catch(() => {}); }, LEVELS_EVERY_MS);

// --- An image -------------------------------------------------------------------------------------

async function classify(blob) {
  const mine = ++classifying;
  const problem = element("image-problem");
  problem.hidden = true;
  element("result").hidden = true;
  element("busy").hidden = false;
  await picture.show(blob);
  try {
    const body = new FormData();
    body.append("file", blob);
    const answer = await (await call("classify", { method: "POST", body })).json();
    if (mine !== classifying) return;
    const [result] = answer.results;
    showResult(result);
    if (!dial.levels().length) await dial.refresh();
    await picture.merging(result.r, dial.levels().map(({ r }) => r));
  } catch (error) {
    if (mine !== classifying) return;
    problem.textContent = error.status ? error.message : "The server cannot be reached.";
    problem.hidden = false;
  } finally {
    if (mine === classifying) element("busy").hidden = true;
  }
}

function showResult(result) {
  element("classes").replaceChildren(...result.predictions.map(({ label, score }) => {
    const bar = make("span", { class: "fill" });
    bar.style.width = `${score * 100}%`;
    return make("li", {}, make("span", { class: "name" }, label), make("span", {}, `${percent(score)} %`),
      make("span", { class: "track", "aria-hidden": "true" }, bar));
  }));
  set("fact-r", String(result.r));
  set("fact-batch", String(result.batch_size));
  set("fact-queue", milliseconds(result.queue_ms));
  set("fact-compute", milliseconds(result.compute_ms));
  element("result").hidden = false;
  element("busy").hidden = true;
  const [best] = result.predictions;
  announce(`${best.label}, ${percent(best.score)} percent, served at r = ${result.r} in ${milliseconds(result.compute_ms)} milliseconds.`);
}

const take = (files) => {
  const found = [...(files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (found) classify(found);
  return Boolean(found);
};

element("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
element("example").addEventListener("click", async () => classify(await paintExample()));
addEventListener("paste", (event) => { if (take(event.clipboardData?.files)) event.preventDefault(); });
const drop = element("drop");
addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer?.files);
});

// --- Begin ----------------------------------------------------------------------------------------

dial.start();
picture.start();
follow("events", onEvent, (seconds, why) =>
  showState("lost", `${why || "Connection lost"}${why ? " Retrying" : ", retrying"} in ${seconds} s`));
