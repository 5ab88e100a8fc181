// Curves and a heat map as SVG; what they show also stands in words beside them.
import {h, svg, number} from "./dom.js";

const WIDE = 400, HIGH = 150, LEFT = 58,  // about as wide as it is shown, so that its text keeps its size
  LOW = 26, TOP = 10, RIGHT = 8;

function scale(values, from, to) {
  const low = Math.min(...values), high = Math.max(...values);
  const span = high - low || Math.abs(high) || 1;
  return {low, high: low + span, at: value => from + (value - low) / span * (to - from)};
}

// `lines` is {name: [[step, value], …]}; at most 600 points of each are drawn.
export function curves(title, lines) {
  const named = Object.entries(lines).filter(([, points]) => points.length);
  if (!named.length) return null;
  const thin = points => points.filter((_, at) => at % Math.ceil(points.length / 600) === 0 || at === points.length - 1);
  const all = named.flatMap(([, points]) => points);
  const x = scale(all.map(point => point[0]), LEFT, WIDE - RIGHT), y = scale(all.map(point => point[1]), HIGH - LOW, TOP);
  const tick = (value, place) => svg("text", {x: LEFT - 6, y: place + 4, "text-anchor": "end"}, number(value));
  const last = named.map(([name, points]) => `${name} ${number(points.at(-1)[1])} at step ${points.at(-1)[0]}`).join(", ");
  return h("figure", {}, h("h3", {}, title),
    svg("svg", {viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${title}: ${last}`},
      svg("path", {class: "axis", d: `M${LEFT} ${TOP}V${HIGH - LOW}H${WIDE - RIGHT}`}),
      tick(y.high, TOP), tick(y.low, HIGH - LOW),
      svg("text", {x: LEFT, y: HIGH - 6}, `step ${x.low}`),
      svg("text", {x: WIDE - RIGHT, y: HIGH - 6, "text-anchor": "end"}, `${Math.round(x.high)}`),
      named.map(([name, points], at) => [
        svg("polyline", {class: `line c${at}`, points: thin(points).map(([s, v]) => `${x.at(s)},${y.at(v)}`).join(" ")}),
        thin(points).length < 40 && thin(points).map(([s, v]) => svg("circle", {class: `dot c${at}`, cx: x.at(s), cy: y.at(v), r: 2.5})),
      ])),
    h("figcaption", {}, named.map(([name, points], at) => [h("span", {class: `key c${at}`}, name), ` ${number(points.at(-1)[1])}  `])));
}

// {steps, layers, values}: darker is longer, each square a layer over some steps.
export function heatMap(norms) {
  const {steps, layers, values} = norms;
  const known = values.flat().filter(value => value !== null && value > 0).map(Math.log);
  if (!known.length) return null;
  const low = Math.min(...known), span = Math.max(...known) - low || 1;
  const wide = (WIDE - LEFT - RIGHT) / steps.length, high = Math.max(4, Math.min(22, 320 / layers.length));
  const tall = high * layers.length;
  return h("figure", {}, h("h3", {}, "Gradient norms by layer"),
    svg("svg", {viewBox: `0 0 ${WIDE} ${tall + LOW}`, role: "img",
      "aria-label": `Norms of ${layers.length} layers over ${steps.length} places up to step ${steps.at(-1)}`},
      values.map((row, line) => row.map((value, column) => value === null ? null : svg("rect", {
        class: "cell", x: LEFT + column * wide, y: (layers.length - 1 - line) * high, width: wide + 0.3, height: high,
        "fill-opacity": value > 0 ? (0.08 + 0.92 * (Math.log(value) - low) / span).toFixed(3) : 0}))),
      svg("text", {x: LEFT - 6, y: 12, "text-anchor": "end"}, `layer ${layers.at(-1)}`),
      svg("text", {x: LEFT - 6, y: tall, "text-anchor": "end"}, `${layers[0]}`),
      svg("text", {x: WIDE - RIGHT, y: tall + 18, "text-anchor": "end"}, `step ${steps.at(-1)}`)),
    h("figcaption", {}, `From ${number(Math.exp(low))} (pale) to ${number(Math.exp(low + span))} (full), in steps of equal ratio; empty where a layer is frozen.`));
}

// Tokens shaded by what they do: green lowers the guide loss, orange raises it.
export function shaded(tokens) {
  const most = Math.max(...tokens.map(token => Math.abs(token.share))) || 1;
  return h("p", {class: "said"}, tokens.map(token => {
    const strength = Math.round(60 * Math.abs(token.share) / most);
    const own = h("span", {class: token.share < 0 ? "raises" : "lowers", title: number(token.share)}, token.text || ` … (${token.tokens} tokens) `);
    own.style.setProperty("--strength", `${strength}%`);
    return own;
  }));
}
