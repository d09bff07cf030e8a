// The picture, and over it what merging did: groups of patches, outlined or in their mean colour.

import { json } from "./api.js";
import { element, set } from "./text.js";

const MOST_HEIGHT = 400;
const PIXELS_PER_PATCH = 8; // to take mean colours from
const PATIENCE_MS = 120;

const stage = element("stage");
let bitmap = null;
let file = null;
let answers = new Map(); // degree to what merges at it, for this picture
let shown = null;
let pointed = null;
let timer = 0;
let asked = 0;

export function start() {
  for (const id of ["outline", "fill"]) element(id).addEventListener("change", paint);
  element("merge-layer").addEventListener("input", () => { label(); paint(); });
  element("merge-r").addEventListener("input", () => {
    label();
    clearTimeout(timer);
    timer = setTimeout(load, PATIENCE_MS);
  });
  stage.addEventListener("pointermove", (event) => point(patchAt(event)));
  stage.addEventListener("pointerleave", () => point(null));
  new ResizeObserver(paint).observe(element("drop"));
}

// Show a picture; one that the browser cannot decode, the server may still read.
export async function show(blob) {
  file = blob;
  answers = new Map();
  shown = null;
  element("merging").hidden = true;
  bitmap = await createImageBitmap(blob).catch(() => null);
  stage.hidden = !bitmap;
  element("drop").classList.toggle("full", Boolean(bitmap));
  element("drop-hint").hidden = Boolean(bitmap);
  stage.setAttribute("aria-label", "The picture");
  paint();
}

// Offer to look at what merges, at first at the degree that it was served at, if any merged there.
export async function merging(servedAt, degrees) {
  const slider = element("merge-r");
  slider.max = degrees.length - 1;
  slider.value = Math.max(0, degrees.indexOf(servedAt || degrees[degrees.length - 1]));
  slider.degrees = degrees;
  slider.servedAt = servedAt;
  element("merging").hidden = degrees.length < 2 || !bitmap;
  label();
  if (!element("merging").hidden) await load();
}

const degree = () => element("merge-r").degrees?.[Number(element("merge-r").value)] ?? 0;

async function load() {
  const r = degree();
  const mine = ++asked;
  try {
    if (!answers.has(r)) {
      const kept = answers;
      const body = new FormData();
      body.append("file", file);
      kept.set(r, await patiently(() => json(`merges?r=${r}&layers=true`, { method: "POST", body }), mine));
    }
    if (mine !== asked) return;
    const layer = element("merge-layer");
    const before = shown;
    shown = answers.get(r);
    const last = Number(layer.value) === Number(layer.max);
    layer.max = shown.layers.length;
    if (!before || last) layer.value = layer.max;
    label();
    paint();
  } catch (error) {
    if (mine === asked) set("merging-text", error.status ? error.message : "The server cannot be reached.");
  }
}

// A server that is classifying asks to come back; a few times the page does.
async function patiently(ask, mine) {
  for (let tries = 0; ; tries++) {
    try {
      return await ask();
    } catch (error) {
      if (error.status !== 429 || tries === 3 || mine !== asked) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * Math.max(1, error.retryAfter)));
    }
  }
}

function label() {
  const slider = element("merge-r");
  const layer = element("merge-layer");
  set("merge-r-text", `r = ${degree()}`);
  slider.setAttribute("aria-valuetext", `r = ${degree()}`);
  set("merge-layer-text", `${layer.value} of ${layer.max}`);
  layer.setAttribute("aria-valuetext", `after layer ${layer.value} of ${layer.max}`);
  if (!shown) return;
  const { tokens, groups } = current();
  const largest = Math.max(...sizes(groups).values());
  const pruned = groups.filter((group) => group < 0).length;
  const where = degree() === slider.servedAt ? "as it was served" : `it was served at r = ${slider.servedAt}`;
  const text = tokens === groups.length && !pruned
    ? `At r = ${shown.r} nothing merges: all ${tokens} patches stay (${where}).`
    : pruned
      ? `${groups.length} patches, ${tokens} kept, ${pruned} dropped at r = ${shown.r} (${where}).`
      : `${groups.length} patches became ${tokens} tokens at r = ${shown.r} (${where}); the largest stands for ${largest} patches.`;
  set("merging-text", text);
  stage.setAttribute("aria-label", `The picture. ${text}`);
}

const current = () => shown.layers[Number(element("merge-layer").value) - 1] ?? shown.layers[shown.layers.length - 1];

function sizes(groups) {
  const found = new Map();
  for (const group of groups) if (group >= 0) found.set(group, (found.get(group) ?? 0) + 1);
  return found;
}

// The whole picture, as large as the stage; where the model's crop lies in it comes from the server.
function paint() {
  if (!bitmap) return;
  const room = element("drop").clientWidth;
  const ratio = Math.min(room / bitmap.width, MOST_HEIGHT / bitmap.height);
  const [width, height] = [bitmap.width * ratio, bitmap.height * ratio].map(Math.round);
  const dense = window.devicePixelRatio || 1;
  if (stage.width !== Math.round(width * dense) || stage.height !== Math.round(height * dense)) {
    stage.width = Math.round(width * dense);
    stage.height = Math.round(height * dense);
  }
  stage.style.width = `${width}px`;
  stage.style.height = `${height}px`;
  const pen = stage.getContext("2d");
  pen.setTransform(dense, 0, 0, dense, 0, 0);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, width, height);
  if (shown) overlay(pen, width, height);
}

// The crop in CSS pixels of the stage.
function frame(width, height) {
  const { picture, crop } = shown;
  const scale = Math.min(width, height) / Math.min(picture.width, picture.height);
  const left = (width - picture.width * scale) / 2 + crop.left * scale;
  const top = (height - picture.height * scale) / 2 + crop.top * scale;
  return { left, top, width: crop.width * scale, height: crop.height * scale };
}

function overlay(pen, width, height) {
  const { grid } = shown;
  const { groups } = current();
  const box = frame(width, height);
  const cell = { width: box.width / grid.width, height: box.height / grid.height };
  pen.fillStyle = "rgb(10 14 20 / 62%)";
  pen.beginPath();
  pen.rect(0, 0, width, height);
  pen.rect(box.left, box.top, box.width, box.height);
  pen.fill("evenodd");
  const corner = (n) => [box.left + (n % grid.width) * cell.width, box.top + Math.floor(n / grid.width) * cell.height];
  const cover = (n) => pen.fillRect(...corner(n), cell.width + 0.5, cell.height + 0.5);
  if (element("fill").checked) {
    const colours = meanColours(groups, grid, box, width, height);
    groups.forEach((group, n) => { if (group >= 0) { pen.fillStyle = colours.get(group); cover(n); } });
  }
  pen.fillStyle = "rgb(10 14 20 / 72%)";
  groups.forEach((group, n) => { if (group < 0) cover(n); });
  if (element("outline").checked) {
    const many = sizes(groups);
    const merged = (n) => (many.get(groups[n]) ?? 0) > 1;
    stroke(pen, borders(groups, grid, (a, b) => merged(a) || merged(b)), corner, cell);
  }
  if (pointed !== null) {
    const group = groups[pointed];
    stroke(pen, borders(groups, grid, (a, b) => groups[a] === group || (b >= 0 && groups[b] === group)), corner, cell, "#ffd54a", 3);
  }
}

// Edges between patches of different groups: [patch, side], side 0 is its right and 1 its lower one.
function borders(groups, grid, wanted) {
  const found = [];
  groups.forEach((group, n) => {
    const x = n % grid.width;
    const right = x + 1 < grid.width ? n + 1 : -1;
    const below = n + grid.width < groups.length ? n + grid.width : -1;
    if ((right < 0 || groups[right] !== group) && wanted(n, right)) found.push([n, 0]);
    if ((below < 0 || groups[below] !== group) && wanted(n, below)) found.push([n, 1]);
    if (x === 0 && wanted(n, -1)) found.push([n, 2]);
    if (n < grid.width && wanted(n, -1)) found.push([n, 3]);
  });
  return found;
}

function stroke(pen, edges, corner, cell, colour = "#fff", thick = 1.6) {
  pen.beginPath();
  for (const [n, side] of edges) {
    const [x, y] = corner(n);
    const [w, h] = [cell.width, cell.height];
    const line = [[x + w, y, x + w, y + h], [x, y + h, x + w, y + h], [x, y, x, y + h], [x, y, x + w, y]][side];
    pen.moveTo(line[0], line[1]);
    pen.lineTo(line[2], line[3]);
  }
  pen.lineCap = "round";
  for (const [style, width] of [["rgb(10 14 20 / 55%)", thick + 1.8], [colour, thick]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.stroke();
  }
}

function meanColours(groups, grid, box, width, height) {
  const small = new OffscreenCanvas(grid.width * PIXELS_PER_PATCH, grid.height * PIXELS_PER_PATCH);
  const pen = small.getContext("2d", { willReadFrequently: true });
  const [sx, sy] = [small.width / box.width, small.height / box.height];
  pen.drawImage(bitmap, -box.left * sx, -box.top * sy, width * sx, height * sy);
  const { data } = pen.getImageData(0, 0, small.width, small.height);
  const sums = new Map();
  for (let i = 0; i < data.length; i += 4) {
    const x = (i / 4) % small.width, y = Math.floor(i / 4 / small.width);
    const group = groups[Math.floor(y / PIXELS_PER_PATCH) * grid.width + Math.floor(x / PIXELS_PER_PATCH)];
    const sum = sums.get(group) ?? [0, 0, 0, 0];
    for (let c = 0; c < 3; c++) sum[c] += data[i + c];
    sum[3]++;
    sums.set(group, sum);
  }
  return new Map([...sums].map(([group, [r, g, b, n]]) => [group, `rgb(${r / n} ${g / n} ${b / n})`]));
}

function patchAt(event) {
  if (!shown) return null;
  const box = frame(stage.clientWidth, stage.clientHeight);
  const x = Math.floor(((event.offsetX - box.left) / box.width) * shown.grid.width);
  const y = Math.floor(((event.offsetY - box.top) / box.height) * shown.grid.height);
  return x >= 0 && y >= 0 && x < shown.grid.width && y < shown.grid.height ? y * shown.grid.width + x : null;
}

function point(patch) {
  if (patch === pointed) return;
  pointed = patch;
  paint();
  if (!shown) return;
  const { groups } = current();
  if (patch === null || groups[patch] < 0) return label();
  const size = sizes(groups).get(groups[patch]);
  set("merging-text", size === 1 ? "This patch is a token of its own." : `This token stands for ${size} patches.`);
}
