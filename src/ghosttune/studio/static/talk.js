// Questions to the run and its untouched base, the rows behind an answer, and the right answer as a row.
import {h, post, listen, button, number, link} from "./dom.js";
import {shaded} from "./charts.js";
import {tabs} from "./run.js";

const SPEAKERS = {adapter: "the adapter", base: "the untouched base"};

export async function talk(place, name) {
  const said = [];
  let running = null;  // what ends the answer that is being written
  const list = h("div", {"aria-live": "polite"});
  const question = h("textarea", {id: "question", rows: 2, placeholder: "Ask something. Enter sends, Shift+Enter is a new line, Escape stops the answer."});
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
    const asked = [...said, {role: "user", content: text}], cards = {}, words = {};
    const box = h("div", {class: "pair"}, h("p", {class: "soft"}, "opening the model …"));
    const turn = h("section", {class: "turn", "aria-busy": "true"}, h("p", {class: "user said"}, text), box);
    list.append(turn);
    function hear(who, piece) {
      if (who === "base" && !cards.adapter) hear("adapter", "");  // it said nothing
      if (!(who in cards)) {
        words[who] = h("p", {class: "said", [`data-${who}`]: ""});
        cards[who] = h("div", {class: "card"}, h("h3", {}, SPEAKERS[who]), words[who]);
        box.replaceChildren(...Object.values(cards));
      }
      words[who].append(piece);
    }
    running = new AbortController();
    stop.hidden = false;
    try {
      const {memory_mb: memory} = await listen("ask", {run: name, messages: asked}, running.signal, hear);
      if (!cards.adapter) hear("adapter", "");
      turn.append(h("p", {class: "soft"}, `This process now holds ${number(Math.round(memory))} MB.`));
    } catch (error) {
      if (error.name !== "AbortError") { turn.remove(); throw error; }
      if (cards.adapter) turn.append(h("p", {class: "soft"}, "Stopped."));
      else turn.remove();
    } finally {
      running = null;
      if (stop.contains(document.activeElement)) question.focus();
      stop.hidden = true;
      turn.removeAttribute("aria-busy");
    }
    if (!turn.isConnected) return;  // forgotten meanwhile, or stopped before the first word
    const answer = words.adapter.textContent;
    cards.adapter.append(...behind(asked, answer));
    said.push(asked.at(-1), {role: "assistant", content: answer});
    question.value = "";
  }

  const send = button("Ask", ask, {class: "main"}), stop = button("Stop", () => running?.abort());
  stop.hidden = true;
  question.addEventListener("keydown", key => {
    if (key.key === "Enter" && !key.shiftKey) { key.preventDefault(); send.firstChild.click(); }
    if (key.key === "Escape") running?.abort();
  });
  const forget = button("Forget what was said", () => { running?.abort(); said.length = 0; list.replaceChildren(); });
  place.append(h("h1", {}, name), tabs(name, "talk"), h("p", {class: "soft"}, "The adapter and the untouched base answer side by side. Under an answer, Why? names the training rows behind it, and This is wrong takes the right one."), list, h("label", {for: "question"}, "Question"), question,
    h("p", {class: "acts"}, send, stop, forget));
  return () => running?.abort();
}
