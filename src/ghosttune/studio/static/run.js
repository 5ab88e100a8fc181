// One run: what it found, or what happens in it now.
import {h, get, post, button, link, number, interval, duration, fill, table} from "./dom.js";
import {counted} from "./changes.js";
import {curves, heatMap} from "./charts.js";

export const tabs = (name, here) => h("ul", {class: "tabs"}, [["", "Run"], ["rows", "Rows"], ["talk", "Talk"]].map(([page, label]) =>
  h("li", {}, h("a", {href: link(name, page), "aria-current": page === here ? "page" : null}, label))));

function live(name, state) {
  const head = h("div", {class: "tiles"}), loss = h("div"), rate = h("div"), norms = h("div"), phases = h("div"), samples = h("div"), values = h("div", {id: "values"});
  const lines = {train: [], dev: []}, rates = [], begun = [], answers = new Map();
  const stream = new EventSource(`live?run=${encodeURIComponent(name)}`);
  const tile = (title, value) => h("div", {class: "tile"}, h("span", {}, title), h("b", {}, value));

  stream.addEventListener("again", () => { lines.train = []; lines.dev = []; rates.length = 0; begun.length = 0; answers.clear(); });
  stream.addEventListener("events", message => {
    for (const event of JSON.parse(message.data)) {
      if (event.event === "log") lines.train.push([event.step, event.loss]);
      if (event.event === "eval" && event.split === "dev") lines.dev.push([event.step, event.loss]);
      if (event.learning_rate !== undefined) rates.push([event.step, event.learning_rate]);
      if (event.event === "phase") begun.push(event);
      if (event.event === "samples") {
        for (const one of event.asked ?? []) answers.set(one.example_id, {asked: one, said: []});
        for (const one of event.answers ?? []) answers.get(one.example_id)?.said.push([event.step, one]);
      }
    }
    fill(loss, curves("Loss, nats per target", lines));
    fill(rate, curves("Learning rate", {"learning rate": rates}));
    fill(phases, begun.length ? h("div", {}, h("h3", {}, "Phases"), h("ul", {}, begun.map(one => h("li", {}, `from step ${one.step}: ${one.trains}`)))) : null);
    fill(samples, answers.size ? h("div", {}, h("h3", {}, "Answers while it trains"), [...answers.values()].map(one => h("div", {class: "card"},
      h("p", {class: "said"}, one.asked.prompt ?? one.asked.example_id),
      one.said.slice(-3).map(([step, answer]) => h("p", {}, h("span", {class: "soft"}, `step ${step}: `), answer.output ?? answer.text ?? ""))))) : null);
  });
  stream.addEventListener("values", async message => {
    if (state !== "running") return;
    const worst = await get("rows", {run: name, sort: "standing", limit: 5}).catch(() => null);
    if (worst) fill(values, table(`Rows that stand lowest so far, by the ledger up to step ${message.data}`, ["row", "says", "standing", "value"], worst.rows.map(row =>
      [h("a", {href: link(name, "rows")}, row.example_id), [h("div", {class: "clip soft"}, row.asked), h("div", {class: "clip"}, row.says)], h("span", {class: "number"}, number(row.standing)), h("span", {class: "number"}, number(row.value))])));
  });
  stream.addEventListener("norms", message => fill(norms, heatMap(JSON.parse(message.data))));
  stream.addEventListener("state", message => {
    const now = JSON.parse(message.data);
    const memory = Object.entries(now.memory).map(([where, size]) => `${number(Math.round(size))} MB ${where}`).join(", ");
    head.replaceChildren(...[tile("state", h("span", {id: "state", class: `state ${now.state}`}, now.state)),
      tile("step", `${now.step} of ${now.max_steps ?? "?"}`), tile("time left, about", now.state === "running" ? duration(now.left) : "–"),
      memory ? tile("peak memory", memory) : null, now.error ? h("p", {class: "trouble"}, now.error) : null].filter(Boolean));
    if (state === "running" && now.state !== "running") dispatchEvent(new HashChangeEvent("hashchange"));
    else state = now.state;
  });
  return {part: h("section", {}, head, h("div", {class: "figures"}, loss, rate, norms), values, phases, samples), end: () => stream.close()};
}

function found(one) {
  const facts = [["model", one.model], ["method", one.method], ["rows", Object.entries(one.rows).map(([split, count]) => `${number(count)} ${split}`).join(", ")],
    ["time", duration(one.seconds)], ["best step", number(one.best_step)]];
  if (one.patch) facts.push(["patch", counted(one.patch)]);
  const columns = Object.entries(one.columns).map(([column, own]) => h("li", {}, `${own.rows} ${column} rows: ${own.verdict}, AUROC ${interval(own.auroc)}`));
  return [
    one.verdict ? h("p", {class: `verdict ${one.verdict.split(" ")[0]}`},
      `${one.verdict}: dev loss ${number(one.dev_loss_base)} → ${number(one.dev_loss)} nats per target, change ${interval(one.change)}`) : null,
    one.error ? h("p", {class: "trouble"}, one.error) : null,
    h("dl", {class: "facts"}, facts.map(([title, value]) => [h("dt", {}, title), h("dd", {}, value ?? "–")])),
    columns.length ? [h("h2", {}, "Rows of a kind, by standing"), h("ul", {}, columns)] : null,
    one.notes.length ? h("details", {}, h("summary", {}, `Before concluding anything (${one.notes.length})`), h("ul", {class: "notes"}, one.notes.map(note => h("li", {}, note)))) : null,
  ];
}

async function answered(name, place) {
  const rows = await get("answers", {run: name});
  if (!rows.length) return;
  place.append(h("h2", {}, "Answers to the dev rows, the worst first"), table("Answers", ["question", "right", "the adapter", "the base", ""], rows.slice(0, 30).map(row => {
    const asked = typeof row.prompt === "string" ? row.prompt : JSON.stringify(row.prompt);
    return [h("div", {class: "said"}, asked), (row.references ?? []).slice(0, 1).join(""), row.output ?? "", row.base_output ?? "",
      h("a", {href: `${link(name, "talk")}/${encodeURIComponent(asked)}`}, "ask why")];
  })));
}

export async function run(place, name) {
  const one = await get("run", {run: name});
  const now = live(name, one.state), answers = h("section");
  const control = one.state === "running"
    ? (one.started_here ? button("Stop, state saved", () => post("stop", {run: name})) : h("span", {class: "soft"}, "started elsewhere: stop it there"))
    : ["stopped", "crashed", "failed"].includes(one.state) ? button("Resume", async () => { await post("resume", {run: name}); setTimeout(() => dispatchEvent(new HashChangeEvent("hashchange")), 2000); }) : null;
  place.append(h("h1", {}, name), tabs(name, ""), h("p", {class: "acts"}, control, h("a", {href: `#/new/${encodeURIComponent(name)}`}, "Copy as a new run"),
    one.report ? h("a", {href: `report/${name.split("/").map(encodeURIComponent).join("/")}/index.html`}, "Report") : null),
    ...found(one).flat(2).filter(Boolean), now.part, answers,
    h("details", {}, h("summary", {}, "Configuration"), h("pre", {}, one.config)),
    one.said ? h("details", {}, h("summary", {}, "What its process said last"), h("pre", {}, one.said)) : "");
  if (one.state !== "running") answered(name, answers).catch(error => answers.append(h("p", {class: "trouble"}, error.message)));
  return now.end;
}
