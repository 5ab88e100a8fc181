// What was changed, trained again, and what came of it.
import {h, get, link, number, interval, moment, table} from "./dom.js";
import {counted, described} from "./changes.js";

function one(loop) {
  const arms = Object.entries(loop.arms).map(([arm, name]) => [arm, h("a", {href: link(name)}, name), h("span", {class: `state ${loop.states[arm]}`}, loop.states[arm])]);
  const result = loop.result === null ? h("p", {role: "status"}, "The comparison comes when all of them are finished.")
    : loop.result.error ? h("p", {class: "trouble"}, loop.result.error)
    : [h("ul", {class: "results"}, Object.entries(loop.result.dev_loss).map(([pair, test]) => h("li", {}, h("span", {class: `found ${test.verdict.split(" ")[0]}`}, test.verdict), ` ${pair}: dev loss ${interval(test.change)}, p ${number(test.p_adjusted, 2)}`))),
      h("details", {}, h("summary", {}, "Before concluding anything"), h("ul", {}, loop.result.flags.map(flag => h("li", {}, flag))))];
  return h("section", {class: "card"}, h("h2", {}, `${loop.arms.before}: ${counted(loop.changes)}`), h("p", {class: "soft"}, `${moment(loop.at)} UTC`), table("Arms", ["arm", "run", "state"], arms), result);
}

// What an entry of the history says beside its kind and its run.
function said({run, row, rows, change, changes, arms, dev_loss: found}) {
  if (found) return Object.entries(found).map(([pair, test]) => h("div", {}, `${pair}: ${test.verdict}, ${interval(test)}`));
  if (changes) return `${counted(changes)}: ${Object.values(arms ?? {}).join(", ")}`;
  if (!change) return "";
  return `${row ?? (rows === undefined ? "all rows" : `${number(rows)} rows`)}: ${described(change) || "taken back"}`;
}

const day = at => moment(at).split(" ").map(part => [h("span", {class: "number"}, part), " "]);

const line = entry => [day(entry.at), entry.what, entry.run ?? entry.of ?? entry.arms?.before ?? "", said(entry)];

export async function loop(place) {
  const body = h("div");
  place.append(h("h1", {}, "What was changed, and what it did"), body);
  let before = "";
  async function draw() {
    const found = await get("loops"), text = JSON.stringify(found);
    if (text === before) return;
    before = text;
    body.replaceChildren(...found.loops.map(one), found.loops.length ? "" : h("p", {}, "Nothing was trained again yet: change rows of a run, then train again with the patch."),
      ...found.history.length ? [h("h2", {}, "Everything done here"), table("The newest first", ["when (UTC)", "what", "run", "more"], found.history.map(line))] : []);
  }
  await draw();
  const again = setInterval(() => draw().catch(() => {}), 2000);
  return () => clearInterval(again);
}
