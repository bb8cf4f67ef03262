// Lists of units, sorted and filtered by any column; histograms and tokens are read of those rows alone that are looked at.

import { h, number, share, table, visible } from "./dom.js";
import { histogram } from "./histogram.js";
import { ask } from "./source.js";

const COLUMNS = ["maximum", "minimum", "mean", "variance", "skewness", "kurtosis", "active", "positive", "count", "nan", "inf", "p01", "p10", "p50", "p90", "p99", "p999", "p9999", "layer", "unit"];
// shown beside the column that the list is sorted by
const SHOWN = ["active", "maximum", "kurtosis"];
const PAGE = 50;

export async function unitsPage(main, { state, go, about, signal }) {
  const sort = state.sort ?? "maximum";
  const ascending = state.ascending === "1";
  const offset = Number(state.offset) || 0;
  const where = [state.where ?? []].flat();
  const { total, rows } = await ask("units", { sort, descending: !ascending, where, site: state.site, offset, limit: PAGE }, signal);
  document.title = "Units - neuron index";
  const filter = h("input", { value: where.join(", "), placeholder: "layer>=3, active<=100", size: 30, spellcheck: false, title: `Conditions with >= or <=, between commas, on ${COLUMNS.join(", ")}` });
  const filtered = (event) => {
    event.preventDefault();
    const conditions = filter.value.split(",").map((part) => part.trim()).filter(Boolean);
    go({ where: conditions.length ? conditions : undefined, offset: undefined });
  };
  const by = (name) => go({ sort: name, ascending: name === sort && !ascending ? "1" : undefined, offset: undefined });
  const columns = [...new Set([...SHOWN, sort])];
  const names = rows.map((row) => `${row.site}.${row.layer}.${row.unit}`);
  const sparks = names.map((_, place) => Object.assign(h("span", { className: "spark" }), { place }));
  const tokens = names.map(() => h("span", { className: "chips" }));
  main.replaceChildren(
    h("h1", {}, "Units ", h("small", {}, number(total))),
    h(
      "form",
      { className: "controls", onsubmit: filtered },
      sites(about, state, go),
      choice("Sorted by", COLUMNS, sort, (name) => go({ sort: name, offset: undefined })),
      h("label", {}, h("input", { type: "checkbox", checked: ascending, onchange: (event) => go({ ascending: event.target.checked ? "1" : undefined, offset: undefined }) }), " ascending"),
      h("label", {}, "Only where ", filter),
      h("button", {}, "Filter"),
      pager({ offset, total, page: PAGE, go }),
    ),
    table(
      ["unit", ...columns.map((name) => h("button", { type: "button", className: "sort", title: `Sort by ${name}`, onclick: () => by(name) }, name, name === sort ? (ascending ? " ↑" : " ↓") : "")), "histogram", "tokens at its peaks"],
      rows.map((row, place) => [h("a", { href: `#/u/${names[place]}` }, names[place]), ...columns.map((name) => (name === "active" ? share(row.count ? row.active / row.count : null) : number(row[name]))), sparks[place], tokens[place]]),
    ),
  );
  whenSeen(sparks, signal, async (seen) => {
    const found = await ask("briefly", { unit: seen.map(({ place }) => names[place]) }, signal);
    seen.forEach((spark, place) => {
      spark.append(histogram(found[place].bins, { width: 160, small: true }));
      tokens[spark.place].append(...found[place].tokens.map((token) => h("span", { className: "chip" }, visible(token))));
    });
  });
}

function choice(label, options, chosen, change) {
  return h("label", {}, label, " ", h("select", { onchange: (event) => change(event.target.value) }, options.map((value) => h("option", { value, selected: value === chosen }, value || "all"))));
}

// Of an index with several sites, of which one a list is.
export function sites(about, state, go) {
  const names = [...new Set(about.layers.map((layer) => layer.site))];
  return names.length > 1 ? choice("Site", ["", ...names], state.site ?? "", (site) => go({ site: site || undefined, offset: undefined })) : null;
}

// Which rows of a list are shown, and the way to those before and behind.
export function pager({ offset, total, page, go }) {
  return [
    h("button", { type: "button", ariaLabel: "Earlier units", disabled: offset === 0, onclick: () => go({ offset: Math.max(offset - page, 0) || undefined }) }, "←"),
    h("span", {}, total ? `${number(offset + 1)} to ${number(Math.min(offset + page, total))}` : "none"),
    h("button", { type: "button", ariaLabel: "Further units", disabled: offset + page >= total, onclick: () => go({ offset: offset + page }) }, "→"),
  ];
}

// Calls `show` with those nodes that come into view, each once.
export function whenSeen(nodes, signal, show) {
  const watching = new IntersectionObserver((entries) => {
    const seen = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    seen.forEach((node) => watching.unobserve(node));
    if (seen.length) show(seen).catch((error) => error.name === "AbortError" || seen[0].append(error.message));
  });
  nodes.forEach((node) => watching.observe(node));
  signal.addEventListener("abort", () => watching.disconnect());
}
