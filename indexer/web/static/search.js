// Units by a token at the peaks of their strongest examples, or by a text or a pattern in these.

import { h, number, table, visible } from "./dom.js";
import { ask } from "./source.js";

const MOST = 50;
// characters shown before what was found
const BEFORE = 30;
const WAYS = { token: "token at the peak", text: "text in an example", pattern: "regular expression in an example" };

export async function searchPage(main, { state, go, about, signal }) {
  document.title = "Search - neuron index";
  if (about.static) {
    main.replaceChildren(h("h1", {}, "Search"), h("p", {}, "These pages have no server, and a search reads all examples. Copy the index and run neuron-indexer serve to search it."));
    return;
  }
  const way = Object.keys(WAYS).find((name) => state[name] !== undefined) ?? "token";
  const form = h(
    "form",
    {
      className: "controls",
      onsubmit: (event) => {
        event.preventDefault();
        const given = Object.fromEntries(new FormData(event.target));
        // a blank belongs to a token; it is all that tells " the" from "the"
        const found = Object.fromEntries(Object.keys(WAYS).map((name) => [name, name === given.way && given.words ? given.words : undefined]));
        go({ ...found, least: given.least || undefined });
      },
    },
    h("label", {}, "Search for ", h("select", { name: "way" }, Object.entries(WAYS).map(([value, said]) => h("option", { value, selected: value === way }, said)))),
    h("input", { name: "words", value: state[way] ?? "", ariaLabel: "What is searched for", spellcheck: false, size: 30 }),
    h("label", {}, "with activations of at least ", h("input", { name: "least", type: "number", step: "any", value: state.least ?? "", placeholder: "any" })),
    h("button", {}, "Search"),
  );
  main.replaceChildren(h("h1", {}, "Search"), form);
  if (state[way] === undefined) return;
  const found = await ask("search", { [way]: state[way], least: state.least }, signal);
  if (!found.length) {
    main.append(h("p", { className: "quiet" }, way === "token" ? "No strong example of any unit has it at its peak. Tokens are spelled as the tokenizer has them: most begin with a blank." : "No strong example of any unit has it."));
    return;
  }
  main.append(
    h("p", { className: "quiet" }, `${number(found.length)} units${found.length === MOST ? " at most" : ""}, those with most such examples among their strongest first.`),
    table(["unit", "examples", "strongest", "there"], found.map((row) => [h("a", { href: `#/u/${row.site}.${row.layer}.${row.unit}` }, `${row.site}.${row.layer}.${row.unit}`), number(row.examples), number(row.value), h("span", { className: "excerpt" }, excerpt(row))])),
  );
}

// What was found, with some of the text around it. Of a token of WordPiece the text has not its ##.
function excerpt({ text, found }) {
  const sought = found.replace(/^##/, "").trim();
  const at = text.toLowerCase().indexOf(sought.toLowerCase());
  if (!sought || at < 0) return visible(text);
  const end = at + sought.length;
  return [at > BEFORE ? "…" : "", visible(text.slice(Math.max(at - BEFORE, 0), at)), h("mark", {}, visible(text.slice(at, end))), visible(text.slice(end))];
}
