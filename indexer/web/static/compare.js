// Two units side by side, of one index or of two. The address keeps both.

import { h, number } from "./dom.js";
import { histogram } from "./histogram.js";
import { ask } from "./source.js";
import { binOf, legend, scaleOf, tailOf } from "./tokens.js";
import { section, statistics } from "./unit.js";

const SIDES = ["a", "b"];

export async function comparePage(main, { state, go, about, signal }) {
  document.title = "Compare - neuron index";
  const given = SIDES.map((side) => ({ side, name: state[side] ?? "", index: state[`${side}in`] ?? about.name }));
  main.replaceChildren(h("h1", {}, "Compare"), form(given, go, about));
  if (given.some(({ name }) => !name)) {
    main.append(h("p", { className: "quiet" }, "Name two units; with several indexes also the same unit in two of them."));
    return;
  }
  const units = await Promise.all(given.map(({ name, index }) => ask(`unit/${encodeURIComponent(name)}`, {}, signal, index)));
  const bins = onOneAxis(units.map((unit) => unit.bins));
  const columns = units.map((unit, place) => column(unit, given[place], bins[place], about));
  main.append(shared(units, given) ?? "", h("div", { className: "sides" }, columns));
}

function form(given, go, about) {
  const which = ({ side, index }) => about.indexes?.length ? h("select", { name: `${side}in`, ariaLabel: `Index of unit ${side}` }, about.indexes.map((value) => h("option", { value, selected: value === index }, value))) : null;
  const submitted = (event) => {
    event.preventDefault();
    go(Object.fromEntries([...new FormData(event.target)].map(([name, value]) => [name, value.trim() || undefined])));
  };
  return h("form", { className: "controls", onsubmit: submitted }, given.map((one) => h("label", {}, one.side === "a" ? "Unit " : "with ", h("input", { name: one.side, value: one.name, spellcheck: false, placeholder: "mlp.5.1733" }), " ", which(one))), h("button", {}, "Compare"));
}

// The bins of both, each with those that only the other has, so that what is above each other is the same value.
function onOneAxis(both) {
  const edges = new Map(both.flat().map(([lower, upper]) => [`${lower} ${upper}`, [lower, upper]]));
  const sorted = [...edges.values()].sort((one, other) => one[0] - other[0] || one[1] - other[1]);
  return both.map((bins) => {
    const counts = new Map(bins.map(([lower, upper, count]) => [`${lower} ${upper}`, count]));
    return sorted.map(([lower, upper]) => [lower, upper, counts.get(`${lower} ${upper}`) ?? 0]);
  });
}

function column(unit, { index }, bins, about) {
  const picture = histogram(bins);
  const view = { unit, scale: scaleOf(unit.numbers.minimum, unit.numbers.maximum), tail: tailOf(unit.bins), mark: (value) => picture.mark(binOf(bins, value)), aligned: true, width: 18, index };
  const base = index === about.name ? "" : `../${index}/`;
  return h(
    "div",
    { className: "side" },
    h("h2", {}, h("a", { href: `${base}#/u/${unit.name}` }, unit.name), about.indexes?.length ? h("small", {}, ` in ${index}`) : null),
    statistics(unit.numbers),
    picture,
    legend(view.scale),
    section("Strongest", unit.top, view),
    section("Lowest", unit.bottom, view),
  );
}

// How many of the strongest examples lie in the same sequences; of two indexes only where their sources have the same names.
function shared(units, given) {
  const places = units.map((unit) => new Set(unit.top.map((example) => `${unit.documents[example.document]?.name ?? example.document} ${example.sequence}`)));
  const both = [...places[0]].filter((place) => places[1].has(place)).length;
  const sources = given[0].index === given[1].index ? "" : ", by the names of their sources";
  return h("p", {}, `${number(both)} of the sequences of the strongest examples are the same${sources}: ${number(places[0].size)} on the left, ${number(places[1].size)} on the right.`);
}
