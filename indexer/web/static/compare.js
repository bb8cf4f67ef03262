// Two units side by side, of one index or of two, and the units of two indexes that are furthest apart. The address keeps both.

import { distance, onOneAxis } from "./distance.js";
import { h, number, table } from "./dom.js";
import { savers } from "./figure.js";
import { histogram } from "./histogram.js";
import { ask } from "./source.js";
import { binOf, legend, scaleOf, tailOf } from "./tokens.js";
import { section, statistics } from "./unit.js";
import { pager, sites, whenSeen } from "./units.js";

const SIDES = ["a", "b"];
const PAGE = 50;
const FORMULA = "The distance is the area between the cumulative shares of tokens by the sum of the mean magnitudes, both from the histograms: 0 for equal shares, 1 where all activation would have to move.";

export async function comparePage(main, { state, go, about, signal }) {
  document.title = "Compare - neuron index";
  const others = (about.indexes ?? []).filter((one) => one !== about.name);
  const given = SIDES.map((side) => ({ side, name: state[side] ?? "", index: state[`${side}in`] ?? about.name }));
  main.replaceChildren(h("h1", {}, "Compare"), form(given, go, about), h("p", { className: "neighbours" }, others.map((one) => h("a", { href: `#/compare?with=${one}` }, `the units that differ most from ${one}`))));
  if (state.with !== undefined) await furthestApart(main, { state, go, about, signal });
  else if (given.every(({ name }) => name)) await sideBySide(main, given, about, signal);
  else main.append(h("p", { className: "quiet" }, "Name two units; with several indexes also the same unit in two of them."));
}

function form(given, go, about) {
  const which = ({ side, index }) => about.indexes?.length ? h("select", { name: `${side}in`, ariaLabel: `Index of unit ${side}` }, about.indexes.map((value) => h("option", { value, selected: value === index }, value))) : null;
  const submitted = (event) => {
    event.preventDefault();
    go({ ...Object.fromEntries([...new FormData(event.target)].map(([name, value]) => [name, value.trim() || undefined])), with: undefined, offset: undefined });
  };
  return h("form", { className: "controls", onsubmit: submitted }, given.map((one) => h("label", {}, one.side === "a" ? "Unit " : "with ", h("input", { name: one.side, value: one.name, spellcheck: false, placeholder: "mlp.5.1733" }), " ", which(one))), h("button", {}, "Compare"));
}

async function sideBySide(main, given, about, signal) {
  const units = await Promise.all(given.map(({ name, index }) => ask(`unit/${encodeURIComponent(name)}`, {}, signal, index)));
  const bins = onOneAxis(units.map((unit) => unit.bins));
  const picture = histogram(bins[0], { over: scaled(bins) });
  const ranks = units.map((unit) => new Map(unit.top.map((example) => [placeOf(unit, example), example.rank])));
  const columns = units.map((unit, place) => column(unit, given[place], { about, ranks: ranks[1 - place], mark: (value) => picture.mark(binOf(bins[place], value)) }));
  main.append(
    h("p", {}, `Distance ${number(distance(bins), 3)}. `, shared(units, ranks, given), h("br"), h("small", {}, FORMULA)),
    h("section", { ariaLabel: "Histograms" }, picture, h("p", { className: "controls" }, h("small", {}, `bars: left, ${given[0].name}; line: right, ${given[1].name}, as of as many tokens`), savers(picture, given.map(({ name }) => name).join("-")))),
    h("div", { className: "sides" }, columns),
  );
}

// Counts of the second as if its corpus had as many tokens as the first one's.
function scaled(bins) {
  const [one, other] = bins.map((of) => of.reduce((sum, bin) => sum + bin[2], 0));
  return bins[1].map((bin) => (other ? (bin[2] * one) / other : 0));
}

// Where an example is, by the name of its source: what is the same in two indexes.
const placeOf = (unit, example) => `${unit.documents[example.document]?.name ?? example.document} ${example.sequence}`;

function column(unit, { index }, { about, ranks, mark }) {
  const view = { unit, scale: scaleOf(unit.numbers.minimum, unit.numbers.maximum), tail: tailOf(unit.bins), mark, aligned: true, width: 18, index, rankThere: (example) => ranks.get(placeOf(unit, example)) };
  const base = index === about.name ? "" : `../${index}/`;
  return h(
    "div",
    { className: "side" },
    h("h2", {}, h("a", { href: `${base}#/u/${unit.name}` }, unit.name), about.indexes?.length ? h("small", {}, ` in ${index}`) : null),
    statistics(unit.numbers),
    legend(view.scale),
    section("Strongest", unit.top, view),
    section("Lowest", unit.bottom, view),
  );
}

// How many of the strongest examples lie in the same sequences; of two indexes only where their sources have the same names.
function shared(units, ranks, given) {
  const both = [...ranks[0].keys()].filter((place) => ranks[1].has(place)).length;
  const sources = given[0].index === given[1].index ? "" : ", by the names of their sources";
  return `The strongest examples lie in ${number(ranks[0].size)} sequences on the left and ${number(ranks[1].size)} on the right, ${number(both)} of them the same${sources}; at these the rank on the other side stands behind an arrow.`;
}

async function furthestApart(main, { state, go, about, signal }) {
  const offset = Number(state.offset) || 0;
  main.append(h("p", { className: "quiet" }, "All histograms of both indexes are read …"));
  const { total, rows, left_out } = await ask("moved", { other: state.with, site: state.site, offset, limit: PAGE }, signal);
  main.lastChild.remove();
  const pictures = rows.map((_, place) => Object.assign(h("span", { className: "spark" }), { place }));
  const address = (name) => `#/compare?${new URLSearchParams({ a: name, ain: about.name, b: name, bin: state.with })}`;
  main.append(
    h("h2", {}, `Units that differ most between ${about.name} and ${state.with} `, h("small", {}, number(total))),
    h("p", { className: "quiet" }, FORMULA, left_out.length ? ` Left out, for only one index has them, or of another size: ${left_out.join(", ")}.` : ""),
    h("p", { className: "controls" }, sites(about, state, go), pager({ offset, total, page: PAGE, go })),
    table(["unit", "distance", "same strongest sequences", `histograms; line: ${state.with}`], rows.map((row, place) => [h("a", { href: address(row.unit) }, row.unit), number(row.distance, 3), `${number(row.overlap)} of ${number(row.most)}`, pictures[place]])),
  );
  whenSeen(pictures, signal, async (seen) => {
    const unit = seen.map(({ place }) => rows[place].unit);
    const both = await Promise.all(["", state.with].map((index) => ask("briefly", { unit }, signal, index)));
    seen.forEach((node, place) => {
      const bins = onOneAxis(both.map((found) => found[place].bins));
      node.append(histogram(bins[0], { width: 160, small: true, over: scaled(bins) }));
    });
  });
}
