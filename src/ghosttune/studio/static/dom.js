// Elements and calls. All text goes in as text nodes: nothing of a row, a run or an answer is ever markup.

const SVG = "http://www.w3.org/2000/svg";

function made(element, facts, children) {
  for (const [name, value] of Object.entries(facts)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, facts = {}, ...children) => made(document.createElement(tag), facts, children);
export const svg = (tag, facts = {}, ...children) => made(document.createElementNS(SVG, tag), facts, children);

async function answer(reply) {
  const value = await reply.json();
  if (!reply.ok) throw new Error(value.error);
  return value;
}

export function get(call, given = {}) {
  const known = Object.entries(given).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return fetch(`api/${call}?${new URLSearchParams(known)}`).then(answer);
}

function sent(call, given, signal = null) {
  const headers = {"Content-Type": "application/json"};
  return fetch(`api/${call}`, {method: "POST", headers, body: JSON.stringify(given), signal});
}

export const post = (call, given = {}) => sent(call, given).then(answer);

// What a call tells while it does it: `hear` gets the kind and the value of each event, until it is done or stopped.
export async function listen(call, given, signal, hear) {
  const reply = await sent(call, given, signal);
  if (!reply.ok) await answer(reply);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const {value, done} = await reader.read();
    if (done) throw new Error("the studio ended before the answer did");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const [kind, data] of events.map(event => event.split("\n"))) {
      const told = JSON.parse(data.slice("data: ".length));
      if (kind === "event: failed") throw new Error(told);
      if (kind === "event: done") return told;
      hear(kind.slice("event: ".length), told);
    }
  }
}

// Puts this in a place, or nothing.
export const fill = (place, what) => place.replaceChildren(...(what ? [what] : []));

export function say(text) {
  document.getElementById("said").textContent = text;
}

// What a button does: it is off meanwhile, and whatever goes wrong is said beside it.
export function button(label, act, facts = {}) {
  const trouble = h("span", {class: "trouble", role: "alert"});
  const own = h("button", {type: "button", ...facts, onclick: async () => {
    own.disabled = true;
    trouble.textContent = "";
    try { await act(own); } catch (error) { trouble.textContent = error.message; }
    own.disabled = false;
  }}, label);
  return h("span", {class: "act"}, own, trouble);
}

export const link = (run, page = "") => `#/run/${encodeURIComponent(run)}${page ? "/" + page : ""}`;

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 ? value.toPrecision(digits) : value.toExponential(digits - 1);
}

export function interval(change) {
  if (!change) return "–";
  return change.low === null ? number(change.value)
    : `${number(change.value)} (${number(change.low)} to ${number(change.high)})`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// A moment as run directories write it, to the second.
export const moment = at => String(at ?? "").replace("T", " ").slice(0, 19);

export function table(caption, heads, lines, facts = {}) {
  return h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": caption},
    h("table", facts, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, heads.map(head => h("th", {scope: "col"}, head)))),
      h("tbody", {}, lines.map(cells => h("tr", {}, cells.map(cell => h("td", {}, cell)))))));
}
