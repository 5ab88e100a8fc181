// Questions to the run and its untouched base, the rows behind an answer, and the right answer as a row.
import {h, post, button, number, link} from "./dom.js";
import {shaded} from "./charts.js";
import {tabs} from "./run.js";

export async function talk(place, name) {
  const said = [];
  const list = h("div", {"aria-live": "polite"});
  const question = h("textarea", {id: "question", rows: 2, placeholder: "Ask something. Enter sends, Shift+Enter is a new line."});
  const first = location.hash.split("/")[4];
  if (first) question.value = decodeURIComponent(first);

  function behind(asked, answer) {
    const rows = h("div"), wrong = h("div");
    const one = row => h("div", {class: "card"}, h("p", {class: "meta"}, `${number(row.score)} `, h("span", {}, row.example_id)), h("p", {class: "said"}, row.content.prompt ?? ""), h("p", {class: "said"}, row.content.completion ?? JSON.stringify(row.content)));
    const why = button("Why?", async () => {
      rows.replaceChildren(h("p", {class: "soft"}, "asking the rows; those of a run without an index are indexed first …"));
      const found = await post("why", {run: name, messages: asked, answer}).catch(error => { rows.replaceChildren(); throw error; });
      const shares = found.tokens.map(tokens => h("div", {}, h("h4", {}, `Tokens of ${tokens.example_id}`), shaded(tokens.row)));
      rows.replaceChildren(h("h3", {}, "Made it likelier"), ...found.helpful.map(one), ...shares, h("h3", {}, "Made it less likely"), ...found.harmful.map(one), h("p", {class: "soft"}, `This process now holds ${number(Math.round(found.memory_mb))} MB.`));
    });
    const mend = button("This is wrong", () => {
      const right = h("textarea", {rows: 3, value: answer, "aria-label": "The right answer"}), against = h("div");
      const add = split => async () => { await post("add", {run: name, split, content: {messages: [...asked, {role: "assistant", content: right.value}]}}); wrong.replaceChildren(h("p", {class: "good", role: "status"}, `Noted as a ${split} row in the patch. `, h("a", {href: link(name, "rows")}, "To the rows"))); };
      wrong.replaceChildren(h("p", {}, "The right answer:"), right, h("p", {}, button("Train on it", add("train")), button("Make it a guide row", add("guide")), button("Which rows speak against it?", async () => {
        against.replaceChildren(h("p", {class: "soft"}, "asking the rows; those of a run without an index are indexed first …"));
        const found = await post("why", {run: name, messages: asked, answer: right.value}).catch(error => { against.replaceChildren(); throw error; });
        against.replaceChildren(h("h3", {}, "Made the right answer less likely"), ...found.harmful.map(one)); })), against);
      right.focus();
    });
    return [h("p", {}, why, mend), wrong, rows];
  }

  async function ask() {
    const text = question.value.trim();
    if (!text) return;
    const asked = [...said, {role: "user", content: text}];
    const box = h("div", {class: "pair"}, h("p", {class: "soft"}, "opening the model, answering …"));
    const turn = h("section", {class: "turn"}, h("p", {class: "user said"}, text), box);
    list.append(turn);
    try {
      const found = await post("ask", {run: name, messages: asked});
      box.replaceChildren(h("div", {class: "card"}, h("h3", {}, "the adapter"), h("p", {class: "said", "data-answer": ""}, found.adapter), behind(asked, found.adapter)),
        found.base === undefined ? "" : h("div", {class: "card"}, h("h3", {}, "the untouched base"), h("p", {class: "said"}, found.base)));
      turn.append(h("p", {class: "soft"}, `This process now holds ${number(Math.round(found.memory_mb))} MB.`));
      said.push(asked.at(-1), {role: "assistant", content: found.adapter});
      question.value = "";
    } catch (error) { turn.remove(); throw error; }
  }

  const send = button("Ask", ask, {class: "main"});
  question.addEventListener("keydown", key => { if (key.key === "Enter" && !key.shiftKey) { key.preventDefault(); send.firstChild.click(); } });
  place.append(h("h1", {}, name), tabs(name, "talk"), h("p", {class: "soft"}, "The adapter and the untouched base answer side by side. Under an answer, Why? names the training rows behind it, and This is wrong takes the right one."), list, h("label", {for: "question"}, "Question"), question,
    h("p", {class: "acts"}, send, button("Forget what was said", () => { said.length = 0; list.replaceChildren(); })));
}
