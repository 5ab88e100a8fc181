// What was changed, trained again, and what came of it.
import {h, get, link, interval, table} from "./dom.js";

function one(loop) {
  const changes = Object.entries(loop.changes).map(([what, count]) => `${count} ${what}`).join(", ");
  const arms = Object.entries(loop.arms).map(([arm, name]) => [arm, h("a", {href: link(name)}, name), h("span", {class: `state ${loop.states[arm]}`}, loop.states[arm])]);
  const result = loop.result === null ? h("p", {role: "status"}, "The comparison comes when all of them are finished.")
    : loop.result.error ? h("p", {class: "trouble"}, loop.result.error)
    : [h("ul", {class: "results"}, Object.entries(loop.result.dev_loss).map(([pair, test]) => h("li", {}, h("span", {class: `found ${test.verdict.split(" ")[0]}`}, test.verdict), ` ${pair}: dev loss ${interval(test.change)}`))),
      h("details", {}, h("summary", {}, "Before concluding anything"), h("ul", {}, loop.result.flags.map(flag => h("li", {}, flag))))];
  return h("section", {class: "card"}, h("h2", {}, `${loop.arms.before}: ${changes}`), h("p", {class: "soft"}, loop.at), table("Arms", ["arm", "run", "state"], arms), result);
}

function line(entry) {
  const {at, what, run, of, dev_loss: found, ...others} = entry;
  const more = found ? Object.entries(found).map(([pair, test]) => h("div", {}, `${pair}: ${test.verdict}, ${interval(test)}`))
    : Object.keys(others).length ? JSON.stringify(others) : "";
  return [at.replace("T", " ").slice(0, 19), what, run ?? of ?? entry.arms?.before ?? "", more];
}

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
