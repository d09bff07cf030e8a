// Calls to this server. Where it asks for an API key, so does the page, and tries again.

import { element, set } from "./text.js";

const STORED = "tocom-key";
let asking = null;
let declined; // the key, or its absence, that the user did not want to change

export class Problem extends Error {
  constructor(status, detail, retryAfter) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export async function call(path, options = {}) {
  for (;;) {
    const used = sessionStorage.getItem(STORED);
    const headers = new Headers(options.headers);
    if (used) headers.set("Authorization", `Bearer ${used}`);
    const answer = await fetch(path, { cache: "no-store", ...options, headers });
    if (answer.ok) return answer;
    const problem = await read(answer);
    if (answer.status !== 401 && answer.status !== 403) throw problem;
    // What the page does by itself does not ask a second time; what the user does, does.
    if ((options.method ?? "GET") === "GET" && declined === used) throw problem;
    // Another call may have got a key meanwhile.
    if (sessionStorage.getItem(STORED) === used) await askForKey(problem, used);
  }
}

export const json = async (path, options) => (await call(path, options)).json();

async function read(answer) {
  let detail = `The server answered ${answer.status}.`;
  try {
    detail = (await answer.json()).detail ?? detail;
  } catch {
    // not from our server, but from a proxy before it
  }
  return new Problem(answer.status, detail, Number(answer.headers.get("Retry-After")) || 0);
}

function askForKey(problem, used) {
  asking ??= new Promise((resolve, reject) => {
    const form = element("key-form");
    const field = element("key");
    const end = (settle, value) => {
      form.hidden = true;
      form.onsubmit = element("key-cancel").onclick = null;
      asking = null;
      settle(value);
    };
    set("key-hint", used ? problem.message : "It is kept in this tab until you close it.");
    form.hidden = false;
    field.value = "";
    field.focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(STORED, field.value.trim());
      end(resolve);
    };
    element("key-cancel").onclick = () => {
      declined = used;
      end(reject, problem);
    };
  });
  return asking;
}
