// Numbers as people read them: few digits, always the same way.

export const element = (id) => document.getElementById(id);

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const whole = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(value))));
  const text = value.toFixed(Math.min(whole, digits - 1));
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

export const percent = (share) =>
  share === null || share === undefined ? "–" : (share * 100).toFixed(1);

export const milliseconds = (value) =>
  value === null || value === undefined ? "–" : value.toFixed(value < 10 ? 1 : 0);

export const clockTime = (date) => date.toLocaleTimeString([], { hour12: false });

export function set(id, text) {
  const target = element(id);
  if (target.textContent !== text) target.textContent = text;
}

// For screen readers: what just happened, once.
export function announce(text) {
  element("live").textContent = text;
}

export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
