// The other pages: layers, units, search, about.

import { h, number, share, table, visible } from "./dom.js";
import { histogram } from "./histogram.js";
import { ask } from "./source.js";

export async function layersPage(main, { signal }) {
  const layers = await ask("layers", {}, signal);
  document.title = "Layers - neuron index";
  const deepest = Math.max(...layers.map((layer) => layer.density ?? 0)) || 1;
  main.replaceChildren(
    h("h1", {}, "Layers"),
    table(
      ["layer", "units", "never active", "active (median)", "beside each other", "maximum (median)", "highest", "kurtosis (median)"],
      layers.map((layer) => [
        h("a", { href: `#/units?site=${layer.site}&where=layer%3E%3D${layer.layer}&where=layer%3C%3D${layer.layer}` }, `${layer.site}.${layer.layer}`),
        number(layer.units),
        number(layer.dead),
        share(layer.density),
        h("span", { className: "bar", style: { width: `${(8 * (layer.density ?? 0)) / deepest}em` } }),
        number(layer.maximum),
        number(layer.highest),
        number(layer.kurtosis),
      ]),
    ),
  );
}

const SORTS = ["maximum", "minimum", "active", "positive", "kurtosis", "skewness", "mean", "variance", "p99", "p9999"];
const PAGE = 50;

export async function unitsPage(main, { state, go, about, signal }) {
  const sort = state.sort ?? "maximum";
  const offset = Number(state.offset) || 0;
  const where = [state.where ?? []].flat();
  const asked = { sort, descending: state.ascending !== "1", where, site: state.site, offset, limit: PAGE };
  const { total, rows } = await ask("units", asked, signal);
  document.title = "Units - neuron index";
  const names = rows.map((row) => `${row.site}.${row.layer}.${row.unit}`);
  const sparks = names.map(() => h("span", { className: "spark" }));
  const tokens = names.map(() => h("span", { className: "chips" }));
  const filter = h("input", { value: where.join(", "), placeholder: "layer>=3, active<=100", size: 30, spellcheck: false });
  main.replaceChildren(
    h("h1", {}, "Units ", h("small", {}, number(total))),
    h(
      "form",
      {
        className: "controls",
        onsubmit: (event) => {
          event.preventDefault();
          const conditions = filter.value.split(",").map((part) => part.trim()).filter(Boolean);
          go({ where: conditions.length ? conditions : undefined, offset: undefined });
        },
      },
      h("label", {}, "Sorted by ", h("select", { onchange: (event) => go({ sort: event.target.value, offset: undefined }) }, SORTS.map((name) => h("option", { value: name, selected: name === sort }, name)))),
      h("label", {}, h("input", { type: "checkbox", checked: state.ascending === "1", onchange: (event) => go({ ascending: event.target.checked ? "1" : undefined, offset: undefined }) }), " ascending"),
      h("label", {}, "Only where ", filter),
      h("button", {}, "Filter"),
      h("button", { type: "button", disabled: offset === 0, onclick: () => go({ offset: Math.max(offset - PAGE, 0) || undefined }) }, "←"),
      h("span", {}, total ? `${number(offset + 1)} to ${number(Math.min(offset + PAGE, total))}` : "none"),
      h("button", { type: "button", disabled: offset + PAGE >= total, onclick: () => go({ offset: offset + PAGE }) }, "→"),
    ),
    table(
      ["unit", sort, "active", ...(about.static ? [] : ["histogram", "tokens at its peaks"])],
      rows.map((row, place) => [h("a", { href: `#/u/${names[place]}` }, names[place]), number(row[sort]), share(row.count ? row.active / row.count : null), ...(about.static ? [] : [sparks[place], tokens[place]])]),
    ),
    about.static ? h("p", { className: "quiet" }, "These pages have no server: a list reads whole columns of the index, and shows neither histograms nor tokens of its units.") : "",
  );
  if (!names.length || about.static) return;
  for (const [place, brief] of (await ask("briefly", { unit: names }, signal)).entries()) {
    sparks[place].append(histogram(brief.bins, { width: 160, small: true }));
    tokens[place].append(...brief.tokens.map((token) => h("span", { className: "chip" }, visible(token))));
  }
}

export async function searchPage(main, { state, go, about, signal }) {
  document.title = "Search - neuron index";
  if (about.static) {
    main.replaceChildren(h("h1", {}, "Search"), h("p", {}, "These pages have no server, and a search reads all examples. Copy the index and run neuron-indexer serve to search it."));
    return;
  }
  const field = (name, said) => h("label", {}, said, " ", h("input", { name, value: state[name] ?? "", spellcheck: false }));
  const form = h(
    "form",
    {
      className: "controls",
      onsubmit: (event) => {
        event.preventDefault();
        const given = new FormData(event.target);
        // a blank belongs to a token; it is all that tells " the" from "the"
        go(given.get("text") ? { text: given.get("text"), token: undefined } : { token: given.get("token") || undefined, text: undefined });
      },
    },
    field("token", "A token at the peak"),
    field("text", "or a text in an example"),
    h("button", {}, "Search"),
  );
  main.replaceChildren(h("h1", {}, "Search"), form);
  if (state.token === undefined && state.text === undefined) return;
  const found = await ask("search", state.text !== undefined ? { text: state.text } : { token: state.token }, signal);
  main.append(
    found.length
      ? table(["unit", "examples", "strongest"], found.map((row) => [h("a", { href: `#/u/${row.site}.${row.layer}.${row.unit}` }, `${row.site}.${row.layer}.${row.unit}`), number(row.examples), number(row.value)]))
      : h("p", { className: "quiet" }, "No strong example of any unit has it. Tokens are spelled as the tokenizer has them: most begin with a blank."),
  );
}

export async function aboutPage(main, { about }) {
  document.title = "About - neuron index";
  main.replaceChildren(h("h1", {}, "About this index"), facts(about));
}

function facts(value) {
  if (Array.isArray(value)) return value.every((one) => typeof one !== "object") ? visible(value.join(", ")) || "none" : h("ol", {}, value.slice(0, 20).map((one) => h("li", {}, facts(one))), value.length > 20 ? h("li", {}, `and ${number(value.length - 20)} more`) : null);
  if (value && typeof value === "object") return h("dl", { className: "nested" }, Object.entries(value).map(([name, one]) => [h("dt", {}, name.replaceAll("_", " ")), h("dd", {}, facts(one))]));
  return typeof value === "number" ? number(value, 6) : visible(String(value ?? "-"));
}
