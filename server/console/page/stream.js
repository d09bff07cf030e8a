// Server-sent events read with fetch, which, unlike EventSource, can send a key.
// A connection that ends or falls silent is made anew, each time a little later.

import { call } from "./api.js";

const SILENCE_MS = 25_000;
const WAITS_S = [1, 2, 4, 8, 10];

export async function follow(path, onEvent, onState) {
  let failures = 0;
  for (;;) {
    let why = "";
    try {
      await readAll(path, (name, data) => {
        failures = 0;
        onEvent(name, data);
      });
    } catch (error) {
      if (error.status === 503 || error.status === 429 || error.status === 401 || error.status === 403)
        why = error.message;
    }
    const wait = WAITS_S[Math.min(failures++, WAITS_S.length - 1)];
    for (let left = wait; left > 0; left--) {
      onState(left, why);
      await pause(1000);
    }
  }
}

async function readAll(path, onEvent) {
  const control = new AbortController();
  let timer = setTimeout(() => control.abort(), SILENCE_MS);
  try {
    const answer = await call(path, { signal: control.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => control.abort(), SILENCE_MS);
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) deliver(block, onEvent);
    }
  } finally {
    clearTimeout(timer);
  }
}

function deliver(block, onEvent) {
  let name = "message";
  let data = "";
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data) onEvent(name, JSON.parse(data));
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
