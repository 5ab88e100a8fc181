// The training rows: searched, sorted, filtered on the server, and changed by a patch beside them.
import {h, get, post, button, number, fill, say} from "./dom.js";
import {described} from "./changes.js";
import {shaded} from "./charts.js";
import {tabs} from "./run.js";

const SIZE = 50, SHOWN = ["standing", "value", "tokens"];
const NAMED = {duplicates: "near-duplicates", steps_seen: "steps seen", place: "place in the data"};
const MEASURED = {
  loss: "The loss of each row at the best checkpoint is not known yet.",
  cluster: "Rows were not grouped yet by what they teach: eight clusters of gradients that point the same way.",
  duplicates: "Near-duplicates were not looked for yet: rows whose gradients have a cosine above 0.95, each group with a number.",
};

const field = (id, label, input) => h("span", {class: "field"}, h("label", {for: id}, label), input);

const besides = row => Object.entries(row.beside).map(([key, value]) => `${key}: ${value}`).join(", ");

export async function rows(place, name) {
  const asked = {run: name, text: "", sort: "standing", descending: false, offset: 0, limit: SIZE, changed: false, source: "", low: "", high: ""};
  const list = h("tbody"), heads = h("tr"), all = h("p"), lacking = h("div"), count = h("p", {role: "status"}), patch = h("section"), detail = h("section", {class: "detail", tabindex: "-1", "aria-label": "The row"});
  let mine = 0, wait = 0, total = 0;

  async function draw() {
    const own = ++mine;
    const found = await get("rows", asked);
    if (own !== mine) return;
    total = found.total;
    const changes = Object.fromEntries(found.patch.map(line => [line.example_id, line]));
    count.textContent = `${number(found.total)} of ${number(found.all)} rows${found.total > SIZE ? `, these are ${asked.offset + 1} to ${Math.min(found.total, asked.offset + SIZE)}` : ""}${found.known.includes("value") ? "" : "; values come with the ledger of the first checkpoint (measure.ledger)"}`;
    const beside = SHOWN.includes(asked.sort) || asked.sort === "place" ? [] : [asked.sort];
    const numbers = [...SHOWN, ...beside], kept = ["standing", asked.sort];  // the others give way where the window is narrow
    const kinds = {beside: "beside-it", ...Object.fromEntries(numbers.map(one => [one, kept.includes(one) ? "number" : "number also"]))};
    heads.replaceChildren(...["id", "question and answer", ...numbers, "beside", "patch"].map(head => h("th", {scope: "col", class: kinds[head]}, NAMED[head] ?? head)));
    fill(lacking, MEASURED[asked.sort] && !found.known.includes(asked.sort) ? h("p", {}, `${MEASURED[asked.sort]} `, button("Work it out", async () => {
      count.textContent = "working it out for every row; this takes a pass over all of them …";
      const {rows} = await post("measure", {run: name, what: asked.sort});
      await draw();
      if (!rows) count.textContent = `No row has one: ${NAMED[asked.sort]} were looked for and none found.`; }, {class: "main"})) : null);
    list.replaceChildren(...found.rows.map(row => h("tr", {class: changes[row.example_id]?.drop ? "dropped" : null},
      h("td", {}, h("button", {type: "button", class: "plain", onclick: () => open(row.example_id)}, row.example_id)),
      h("td", {}, h("div", {class: "clip soft"}, row.asked), h("div", {class: "clip"}, row.says)), numbers.map(one => h("td", {class: kinds[one]}, number(row[one]))), h("td", {class: "beside-it"}, h("div", {class: "clip"}, besides(row))),
      h("td", {}, described(changes[row.example_id] ?? {})))));
    source.hidden = !found.sources.length;
    if (source.options.length === 1) source.append(...found.sources.map(one => h("option", {value: one}, one)));
    const narrowed = asked.text || asked.low !== "" || asked.high !== "" || asked.source;
    fill(all, narrowed && found.total ? button(found.total === 1 ? "Drop the row found" : `Drop all ${number(found.total)} rows found`, async () => {
      await post("drop", asked);
      await draw(); }) : null);
    drawPatch(found.patch);
  }

  function drawPatch(lines) {
    patch.replaceChildren(h("h2", {}, `The patch: ${lines.length} rows`), lines.length ? h("ul", {}, lines.map(line => h("li", {}, `${line.example_id}: ${described(line)} `,
      button("take back", async () => { await post("patch", {run: name, row: line.example_id, change: {}}); await draw(); }, {class: "plain", "aria-label": `take back ${line.example_id}`})))) : h("p", {}, "Nothing is changed yet."),
      ...lines.length ? [h("p", {}, button("Take all back", async () => { await post("clear", {run: name}); await draw(); })), h("p", {}, button("Train again with the patch", async () => { await post("retrain", {run: name, control: control.checked}); location.hash = "#/loop"; }, {class: "main"}),
        h("label", {}, control, " with a control that drops as many rows at random"))] : []);
  }
  const control = h("input", {type: "checkbox"});
  control.checked = true;

  async function change(row, wanted) {
    await post("patch", {run: name, row, change: wanted});
    say(`noted for ${row}`);
    await draw();
    await open(row, false);
  }

  async function open(row, focus = true) {
    const one = await get("row", {run: name, row});
    const simple = "completion" in one.content;
    const text = h("textarea", {rows: 6, id: "edit", value: simple ? one.content.completion : JSON.stringify(one.content, null, 2)});
    const weight = h("input", {type: "number", min: 1, max: 1000, value: one.change.weight ?? 1, id: "weight"});
    const flag = h("input", {value: one.change.flag ?? "", id: "flag", placeholder: "why somebody should look"});
    const others = () => ({weight: Number(weight.value) > 1 ? Number(weight.value) : null, flag: flag.value || null});
    const tokens = h("div");
    const keep = () => one.change.edit ? {edit: one.change.edit} : {};
    detail.replaceChildren(h("h2", {}, row), h("p", {class: "soft"}, `value ${number(one.value)}, standing ${number(one.standing)}, ${number(one.tokens)} tokens, seen in ${number(one.steps_seen)} steps. ${described(one.change)}`),
      one.beside && Object.keys(one.beside).length ? h("p", {class: "soft"}, `Beside it: ${besides(one)}`) : "", h("p", {class: "said"}, one.content.prompt ?? ""), h("label", {for: "edit"}, simple ? "Answer" : "Row"), text,
      h("p", {}, button("Drop", () => change(row, {drop: true})),
        button("Keep the edit", () => change(row, {edit: simple ? {completion: text.value} : JSON.parse(text.value), ...others()})),
        button("As it was", () => change(row, {}))),
      h("p", {class: "filters"}, field("weight", "times in an epoch", weight), field("flag", "flag", flag),
        button("Note weight and flag", () => change(row, {...keep(), ...others()}))),
      h("p", {}, button("Shade its tokens", async () => { tokens.replaceChildren(h("p", {class: "soft"}, "opening the model …"));
        try { tokens.replaceChildren(h("h3", {}, "What each token does for the guide rows: green lowers their loss, orange raises it"), shaded(await get("tokens", {run: name, row}))); }
        catch (error) { tokens.replaceChildren(); throw error; } })), tokens);
    if (focus) { detail.scrollIntoView({block: "nearest"}); detail.focus(); }
  }

  const again = (wanted, slow = false) => { Object.assign(asked, {offset: 0}, wanted); clearTimeout(wait); wait = setTimeout(() => draw().catch(error => say(error.message)), slow ? 200 : 0); };
  const source = h("select", {"aria-label": "source", hidden: true, onchange: event => again({source: event.target.value})}, h("option", {value: ""}, "all sources"));
  const sort = h("select", {id: "sort", onchange: event => again({sort: event.target.value})},
    ["standing", "value", "tokens", "steps_seen", "credit", "loss", "cluster", "duplicates", "place"].map(one => h("option", {value: one}, NAMED[one] ?? one)));
  place.append(h("h1", {}, name), tabs(name, "rows"), h("form", {class: "filters", onsubmit: event => event.preventDefault()},
    field("search", "Search", h("input", {id: "search", type: "search", oninput: event => again({text: event.target.value}, true)})),
    field("sort", "Sort by", sort), h("label", {}, h("input", {type: "checkbox", onchange: event => again({descending: event.target.checked})}), " highest first"),
    field("low", "from", h("input", {id: "low", type: "number", step: "any", oninput: event => again({low: event.target.value}, true)})),
    field("high", "to", h("input", {id: "high", type: "number", step: "any", oninput: event => again({high: event.target.value}, true)})),
    h("label", {}, h("input", {type: "checkbox", onchange: event => again({changed: event.target.checked})}), " changed only"), source), lacking, count, all,
    h("div", {class: "beside"}, h("div", {}, h("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Rows"}, h("table", {class: "rows"}, h("caption", {}, "Training rows"),
      h("thead", {}, heads), list)),
    h("p", {}, button("Rows before", () => { asked.offset = Math.max(0, asked.offset - SIZE); return draw(); }), button("Rows after", () => { if (asked.offset + SIZE < total) asked.offset += SIZE; return draw(); }))), detail), patch);
  await draw();
}
