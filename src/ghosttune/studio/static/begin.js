// A configuration as text, looked at while it is written, and the run that it starts.
import {h, get, post, button, link, say} from "./dom.js";
import {completes} from "./complete.js";

export async function begin(place, copied) {
  const {presets} = await get("beginning");
  const found = await get("runs");
  const from = h("select", {id: "from"}, h("option", {value: ""}, "nothing"),
    h("optgroup", {label: "presets"}, presets.map(name => h("option", {value: `preset ${name}`}, name))),
    h("optgroup", {label: "runs"}, found.runs.map(run => h("option", {value: `run ${run.name}`}, run.name))));
  const name = h("input", {id: "name", required: true, autocomplete: "off", spellcheck: "false"});
  const text = h("textarea", {id: "text", rows: 22, spellcheck: "false", autocomplete: "off", "aria-describedby": "faults"});
  const faults = h("div", {id: "faults", role: "status"});
  const started = h("div", {role: "status"});
  let asked = 0, wait = 0;

  async function check() {
    const mine = ++asked;
    const {problems} = await post("check", {text: text.value});
    if (mine !== asked) return;
    faults.replaceChildren(problems.length ? h("ul", {class: "faults"}, problems.map(one => h("li", {},
      one.line ? h("button", {type: "button", class: "plain", onclick: () => go(one.line)}, `line ${one.line}`) : "somewhere",
      ` ${one.setting} `, one.message))) : h("p", {class: "good"}, "Nothing is wrong with these settings. The rows and the model are looked at when the run starts."));
  }

  function go(line) {
    const before = text.value.split("\n").slice(0, line - 1).join("\n");
    const start = before.length + (line > 1 ? 1 : 0);
    text.focus();
    text.setSelectionRange(start, start + text.value.split("\n")[line - 1].length);
    text.scrollTop = (line - 4) * text.scrollHeight / text.value.split("\n").length;
  }

  async function load() {
    const [kind, ...own] = from.value.split(" ");
    if (!kind) return;
    text.value = (await get("beginning", {[kind]: own.join(" ")})).text;
    await check();
  }

  async function start() {
    const {run} = await post("start", {name: name.value, text: text.value});
    for (;;) {
      const now = await get("said", {run});
      if (now.begun) { location.hash = link(run); return; }
      started.replaceChildren(h("p", {}, now.going ? "The run is being prepared …" : "The run has ended before it began:"), h("pre", {}, now.said));
      if (!now.going) return;
      await new Promise(resolve => setTimeout(resolve, 700));
    }
  }

  text.addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(() => check().catch(error => say(error.message)), 250); });
  from.addEventListener("change", () => load().catch(error => say(error.message)));
  place.append(h("h1", {}, "New run"),
    h("p", {}, h("label", {for: "from"}, "Begin with "), from),
    h("p", {}, h("label", {for: "name"}, "Name of the run "), name),
    h("label", {for: "text"}, "Configuration (YAML): settings are offered as you type, or with Ctrl+Space"),
    h("div", {class: "editor"}, text, completes(text)), faults,
    h("p", {}, button("Start the run", start, {class: "main"})), started);
  if (copied) { from.value = `run ${copied}`; name.value = `${copied}-2`; await load(); } else await check();
}
