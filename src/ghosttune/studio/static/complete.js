// Settings of the schema, offered under the cursor while a configuration is written.
import {h, get} from "./dom.js";

const MOST = 8;

// The dotted path of the block that the last of these lines stands in.
function above(lines) {
  const path = [];
  let indent = lines.at(-1).search(/\S|$/);
  for (const line of lines.slice(0, -1).reverse()) {
    const found = /^(\s*)([\w-]+):\s*(#.*)?$/.exec(line);
    if (found && found[1].length < indent) { path.unshift(found[2]); indent = found[1].length; }
  }
  return path;
}

// What may stand at the end of this text: {typed, offers: [{text, what}]}.
export function offered(text, settings) {
  const lines = text.split("\n"), line = lines.at(-1);
  const value = /^\s*([\w-]+):\s+([\w.-]*)$/.exec(line);
  if (value) {
    const name = [...above(lines), value[1]].join(".");
    const takes = settings.find(one => one.setting === name)?.takes ?? "";
    const words = takes === "true or false" ? ["true", "false"] : takes.includes(" | ") ? takes.split(/ \| |, or (?=null$)/) : [];
    return {typed: value[2], offers: words.filter(word => word.startsWith(value[2]) && word !== value[2]).map(word => ({text: word, what: ""}))};
  }
  const key = /^\s*([\w-]*)$/.exec(line);
  if (!key) return {typed: "", offers: []};
  const path = above(lines).map(name => `${name}.`).join("");
  const found = new Map();
  for (const one of settings.filter(one => one.setting.startsWith(path + key[1]))) {
    const [name, ...below] = one.setting.slice(path.length).split(".");
    if (!found.has(name)) found.set(name, below.length ? {text: `${name}:`, what: "a group of settings"} : {text: `${name}: `, what: `${one.what} Default: ${one.default}.`});
  }
  return {typed: key[1], offers: [...found.values()].filter(one => one.text.trim() !== `${key[1]}:` || key[1] === "")};
}

// Makes a textarea offer settings: arrows choose, Enter or Tab takes, Escape closes, Ctrl+Space asks.
export function completes(text) {
  const list = h("ul", {id: "offers", class: "offers", role: "listbox", "aria-label": "Settings", hidden: true});
  const what = h("p", {id: "offer", class: "soft", role: "status"});
  let now = {typed: "", offers: []}, place = 0, settings = null;

  function close() {
    list.hidden = true;
    what.textContent = "";
    text.removeAttribute("aria-activedescendant");
    text.setAttribute("aria-expanded", "false");
  }

  function draw() {
    const first = Math.max(0, Math.min(place - MOST + 1, now.offers.length - MOST));
    list.replaceChildren(...now.offers.slice(first, first + MOST).map((one, at) => h("li", {id: `offer-${first + at}`, role: "option", "aria-selected": String(first + at === place),
      onmousedown: event => { event.preventDefault(); place = first + at; take(); }}, one.text)));
    const before = text.value.slice(0, text.selectionStart).split("\n"), style = getComputedStyle(text);
    list.style.top = `${text.offsetTop + before.length * parseFloat(style.lineHeight) + parseFloat(style.paddingTop) - text.scrollTop}px`;
    list.style.left = `calc(${text.offsetLeft + parseFloat(style.paddingLeft) - text.scrollLeft}px + ${Math.min(24, before.at(-1).length - now.typed.length)}ch)`;
    list.hidden = false;
    what.textContent = `${now.offers[place].text.trim()} ${now.offers[place].what}`;
    text.setAttribute("aria-activedescendant", `offer-${place}`);
    text.setAttribute("aria-expanded", "true");
  }

  async function ask(always) {
    settings ??= (await get("settings")).settings;
    now = offered(text.value.slice(0, text.selectionStart), settings);
    place = 0;
    const ends = /^\s*(\n|$)/.test(text.value.slice(text.selectionStart));
    if (ends && now.offers.length && (always || now.typed)) draw(); else close();
  }

  function take() {
    const at = text.selectionStart - now.typed.length;
    text.setRangeText(now.offers[place].text, at, text.selectionStart, "end");
    close();
    text.dispatchEvent(new Event("input"));
  }

  text.addEventListener("keydown", key => {
    const moves = {ArrowDown: 1, ArrowUp: -1}[key.key];
    if (key.key === " " && key.ctrlKey) { key.preventDefault(); ask(true); return; }
    if (list.hidden) return;
    if (moves) { place = (place + moves + now.offers.length) % now.offers.length; draw(); }
    else if (key.key === "Enter" || key.key === "Tab") take();
    else if (key.key === "Escape") close();
    else return;
    key.preventDefault();
  });
  text.addEventListener("input", event => { if (event.inputType) ask(event.data === " ").catch(close); });
  for (const event of ["blur", "scroll", "click"]) text.addEventListener(event, close);
  for (const [name, value] of Object.entries({role: "combobox", "aria-autocomplete": "list", "aria-controls": "offers", "aria-expanded": "false", "aria-haspopup": "listbox", wrap: "off"})) text.setAttribute(name, value);
  return [list, what];
}
