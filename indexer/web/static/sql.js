// Questions in SQL; an address keeps the question, and the answer can be saved as CSV.

import { h, number, table, visible } from "./dom.js";
import { runSql } from "./source.js";

const EXAMPLE = `SELECT unit_name(site, layer, unit) AS unit, kurtosis, maximum
FROM units
ORDER BY kurtosis DESC
LIMIT 20`;

export async function sqlPage(main, { state, go, about, signal }) {
  document.title = "SQL - neuron index";
  if (about.static) {
    main.replaceChildren(h("h1", {}, "SQL"), h("p", {}, "These pages have no server to run SQL. Copy the index, and run neuron-indexer sql or neuron-indexer serve."));
    return;
  }
  const area = h("textarea", { rows: 8, value: state.q ?? EXAMPLE, spellcheck: false, onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(); } });
  const result = h("section", { ariaLive: "polite" });
  const ask = () => (area.value === state.q ? answer() : go({ q: area.value }));

  async function answer() {
    result.replaceChildren(h("p", { className: "quiet" }, "…"));
    const begun = performance.now();
    try {
      const found = await runSql(area.value, signal);
      result.replaceChildren(...shown(found, performance.now() - begun));
    } catch (error) {
      if (error.name !== "AbortError") result.replaceChildren(h("p", { className: "error", role: "alert" }, error.message));
    }
  }

  main.replaceChildren(
    h("h1", {}, "SQL"),
    h("p", { className: "quiet" }, "One SELECT over the views units, examples, histograms, panel, panel_activations, heads, documents and vocabulary."),
    h("form", { onsubmit: (event) => { event.preventDefault(); ask(); } }, h("label", {}, "Query", area), h("p", { className: "controls" }, h("button", {}, "Run"), h("small", {}, "or Ctrl-Enter; 10 seconds and 1 GB at most"))),
    result,
  );
  if (state.q !== undefined) await answer();
}

function shown({ columns, rows, total, more, csv }, milliseconds) {
  const save = h("a", { className: "button", download: "result.csv", href: URL.createObjectURL(new Blob([csv], { type: "text/csv" })) }, "Save as CSV");
  const counted = `${number(total)}${more ? " rows, and there are more: add LIMIT or use neuron-indexer sql" : total === 1 ? " row" : " rows"}`;
  const cut = rows.length < total ? `, the first ${number(rows.length)} shown` : "";
  return [h("p", { className: "controls" }, h("small", {}, `${counted}${cut}; ${Math.round(milliseconds)} ms`), save), table(columns.map(visible), rows.map((row) => row.map(cell)))];
}

// What names a unit leads to it.
function cell(value) {
  if (typeof value === "string") return /^[\w.]+\.\d+\.\d+$/.test(value) ? h("a", { href: `#/u/${value}` }, value) : visible(value);
  if (typeof value === "number") return number(value, 6);
  return value === null ? "-" : visible(JSON.stringify(value));
}
