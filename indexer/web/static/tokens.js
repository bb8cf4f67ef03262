// Tokens with what a unit does at them: heat by one scale per unit, and one tooltip for the page.

import { h, number, share, visible } from "./dom.js";

// The scale of a unit, one for both signs: the root of the share of its largest magnitude, so that what is faint shows,
// too. Blue below zero, orange above; below zero also underlined, for greyscale.
export function scaleOf(lowest, highest) {
  const low = Math.min(lowest ?? 0, 0);
  const high = Math.max(highest ?? 0, 0);
  const most = Math.max(-low, high);
  return { low, high, heat: (value) => (value === null || !most ? 0 : Math.min(Math.sqrt(Math.abs(value) / most), 1)) };
}

export function legend(scale) {
  const steps = [-1, -0.5, -0.15, 0, 0.15, 0.5, 1].map((part) => part * (part < 0 ? -scale.low : scale.high));
  return h(
    "p",
    { className: "legend", ariaLabel: "Colours of activations" },
    steps.filter((value, place) => value || place === 3).map((value) => shaded(h("span", {}, number(value, 2)), value, scale)),
  );
}

function shaded(node, value, scale) {
  const heat = scale.heat(value);
  if (heat >= 0.05) {
    node.style.setProperty("--heat", heat.toFixed(3));
    node.classList.add(value < 0 ? "low" : "high");
  }
  return node;
}

// Share of all counted tokens whose bin is higher than that of a value; bins: [lower, upper, count], ascending.
export function tailOf(bins) {
  const total = bins.reduce((sum, bin) => sum + bin[2], 0);
  const above = new Array(bins.length).fill(0);
  for (let place = bins.length - 2; place >= 0; place--) above[place] = above[place + 1] + bins[place + 1][2];
  return (value) => {
    const place = binOf(bins, value);
    return place < 0 || !total ? null : above[place] / total;
  };
}

export function binOf(bins, value) {
  return bins.findIndex(([lower, upper]) =>
    lower === upper ? value === lower : upper > 0 ? value >= lower && value < upper && value > 0 : value > lower && value <= upper && value < 0,
  );
}

// One example. told: what the tooltip says of a token, by its place in the window.
export function tokenLine(pieces, values, peak, scale, told, aligned) {
  const spans = pieces.map((piece, place) => {
    const span = shaded(h("span", { className: "token" }, visible(piece)), values[place], scale);
    span.dataset.place = place;
    if (place === peak) span.classList.add("peak");
    return span;
  });
  const line = h("div", { className: aligned ? "line aligned" : "line", tabIndex: 0 });
  line.told = told;
  if (aligned) line.append(h("span", { className: "before" }, h("span", {}, spans.slice(0, peak))), h("span", { className: "after" }, spans.slice(peak)));
  else line.append(...spans);
  return line;
}

const tip = () => document.getElementById("tip");

function show(span) {
  const line = span?.closest(".line");
  document.querySelectorAll(".token.here").forEach((one) => one.classList.remove("here"));
  if (!line?.told) {
    tip().hidden = true;
    return;
  }
  span.classList.add("here");
  const { facts, mark } = line.told(Number(span.dataset.place));
  tip().replaceChildren(h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])));
  tip().hidden = false;
  const { left, bottom, top } = span.getBoundingClientRect();
  const size = tip().getBoundingClientRect();
  const under = bottom + 6 + size.height < innerHeight;
  tip().style.left = `${Math.max(4, Math.min(left, innerWidth - size.width - 8))}px`;
  tip().style.top = `${under ? bottom + 6 : top - size.height - 6}px`;
  mark?.();
}

// Pointer and keyboard alike: a line takes the focus, the arrows walk over its tokens.
export function installTips() {
  document.addEventListener("pointerover", (event) => show(event.target.closest?.(".token")));
  document.addEventListener("focusin", (event) => {
    if (event.target.classList?.contains("line")) show(event.target.querySelector(".peak") ?? event.target.querySelector(".token"));
  });
  document.addEventListener("focusout", () => show(null));
  document.addEventListener("keydown", (event) => {
    const line = event.target.classList?.contains("line") ? event.target : null;
    if (!line || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const spans = [...line.querySelectorAll(".token")];
    const here = spans.findIndex((span) => span.classList.contains("here"));
    show(spans[Math.max(0, Math.min(spans.length - 1, here + (event.key === "ArrowRight" ? 1 : -1)))]);
  });
}

export function factsOf(piece, id, value, tail, more = []) {
  const facts = [["token", visible(piece)], ["activation", number(value)]];
  if (tail) facts.push(["tokens above", share(tail(value))]);
  if (id !== undefined) facts.push(["id", String(id)]);
  return [...facts, ...more];
}
