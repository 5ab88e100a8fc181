// All runs, one line each; those that go on are looked at again.
import {h, get, link, number, interval, duration, moment, table} from "./dom.js";
import {counted} from "./changes.js";

function line(run) {
  const name = h("a", {href: link(run.name)}, run.name);
  if (run.error) return [name, run.state, run.error, "", "", "", ""];
  const differs = Object.entries(run.differs).map(([key, value]) => h("div", {}, `${key}: ${value}`));
  const patch = run.patch && counted(run.patch);
  return [
    name, h("span", {class: `state ${run.state}`}, run.state),
    run.verdict ? h("span", {class: `found ${run.verdict.split(" ")[0]}`}, run.verdict) : `${run.step} of ${run.max_steps ?? "?"} steps`,
    run.dev_loss === null ? "–" : [`${number(run.dev_loss_base)} → ${number(run.dev_loss)}`, h("div", {class: "soft"}, interval(run.change))],
    duration(run.seconds), moment(run.started).slice(0, 16),
    [patch ? h("div", {}, `patch: ${patch}`) : null, h("details", {}, h("summary", {}, `${Object.keys(run.differs).length} settings`), differs)],
  ];
}

export async function runs(place) {
  const heads = ["run", "state", "verdict", "dev loss (change, 95 %)", "time", "started (UTC)", "what differs"];
  const body = h("div");
  place.append(h("h1", {}, "Runs"), body);
  async function draw() {
    const found = await get("runs");
    if (body.contains(document.activeElement)) return found;
    body.replaceChildren(found.runs.length ? table(`Runs in ${found.folder}`, heads, found.runs.map(line), {class: "runs"})
      : h("p", {}, `No runs in ${found.folder} yet. `, h("a", {href: "#/new"}, "Start one"), "."));
    return found;
  }
  await draw();
  const again = setInterval(() => draw().catch(() => {}), 3000);
  return () => clearInterval(again);
}
