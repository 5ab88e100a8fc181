// Which page is shown: the part of the address behind #.
import {h, say} from "./dom.js";
import {runs} from "./runs.js";
import {run} from "./run.js";
import {rows} from "./rows.js";
import {talk} from "./talk.js";
import {begin} from "./begin.js";
import {loop} from "./loop.js";

const PAGES = {rows, talk};
let leave = () => {};

async function show() {
  leave();
  leave = () => {};
  say("");
  const [first, name, page] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const main = document.getElementById("main");
  for (const one of document.querySelectorAll("nav a"))
    one.toggleAttribute("aria-current", one.getAttribute("href") === (first === "run" ? "#/" : `#/${first ?? ""}`));
  const place = h("div");
  main.replaceChildren(place);
  try {
    if (first === "run") leave = await (PAGES[page] ?? run)(place, name) ?? leave;
    else if (first === "new") leave = await begin(place, name) ?? leave;
    else if (first === "loop") leave = await loop(place) ?? leave;
    else leave = await runs(place) ?? leave;
  } catch (error) {
    const back = page ? [h("p", {}, h("a", {href: `#/run/${encodeURIComponent(name)}`}, `Back to ${name}`))] : [];
    place.replaceChildren(
      h("h1", {}, "This cannot be shown"), h("p", {class: "trouble", role: "alert"}, error.message), ...back);
  }
  document.title = `${place.querySelector("h1")?.textContent ?? "Runs"}: ghosttune studio`;
}

addEventListener("hashchange", async () => { await show(); document.getElementById("main").focus(); });
show();
