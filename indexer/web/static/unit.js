// The page of one unit.

import { h, number, share, visible } from "./dom.js";
import { savers } from "./figure.js";
import { histogram } from "./histogram.js";
import { ask, run } from "./source.js";
import { binOf, factsOf, legend, scaleOf, tailOf, tokenLine } from "./tokens.js";

export const KINDS = { top: "Strongest", samples: "Samples", bottom: "Lowest" };
// tokens before the peak, a third as many after it; at first the whole window
export const WIDTHS = [undefined, "24", "12", "6"];

export async function unitPage(main, { name, state, go, replace, about, signal }) {
  const unit = await ask(`unit/${encodeURIComponent(name)}`, {}, signal);
  document.title = `${unit.name} - neuron index`;
  const { numbers, bins } = unit;
  const scale = scaleOf(numbers.minimum, numbers.maximum);
  const tail = tailOf(bins);
  const linear = state.counts === "linear";
  const picture = histogram(bins, { linear, onBin: (place) => go({ band: bandOf(bins[place]), side: "samples" }) });
  const mark = (value) => picture.mark(binOf(bins, value));
  const aligned = state.wrap !== "1";
  const side = KINDS[state.side] ? state.side : "";
  const view = { unit, scale, tail, mark, aligned, width: /^\d+$/.test(state.width) ? Number(state.width) : Infinity };

  if (state.embed) {
    main.replaceChildren(...embedded(state.embed, view, picture));
    return;
  }
  const examples = h("div", {});
  const draw = () => examples.replaceChildren(
    ...Object.entries(KINDS)
      .filter(([kind]) => (!side || side === kind) && unit[kind].length)
      .map(([kind, title]) => section(title, ofBand(unit[kind], kind, state.band), view)),
  );
  const widen = (width) => {
    view.width = width ?? Infinity;
    replace({ width });
    draw();
  };
  draw();
  main.replaceChildren(
    h("div", { className: "title" }, h("h1", {}, unit.name), ofExpert(unit.name, about), neighbours(unit.neighbours), others(unit.name, about)),
    statistics(numbers),
    unit.head ? headScores(unit.head) : "",
    h("section", { ariaLabel: "Histogram" }, picture, h("div", { className: "controls" }, counted(bins, linear, go), savers(picture, unit.name))),
    controls(state, go, unit, widen),
    legend(scale),
    examples,
    peaks(unit) ?? "",
    about.live ? tryText(unit, view, signal) : about.static ? "" : h("p", { className: "quiet" }, "Start the server with --model to try a text of your own on this unit."),
  );
}

// Chosen parts for a page of somebody else's, as embed=facts,hist,top5: facts, hist, top, samples and bottom, with how many.
function embedded(wanted, view, picture) {
  const { unit } = view;
  const title = h("h1", {}, h("a", { href: `#/u/${unit.name}`, target: "_blank" }, unit.name));
  const parts = wanted.split(",").map((part) => {
    const [, name, most] = /^([a-z]+)(\d*)$/.exec(part) ?? [];
    if (name === "facts") return statistics(unit.numbers);
    if (name === "hist") return picture;
    if (!Object.hasOwn(KINDS, name ?? "")) throw new Error(`embed: there is no part "${part}"; there are facts, hist, ${Object.keys(KINDS).join(", ")}, as top5`);
    return section(KINDS[name], unit[name].slice(0, Number(most) || undefined), view);
  });
  return [title, ...parts];
}

// The same unit in the other indexes that are served.
function others(name, about) {
  const rest = (about.indexes ?? []).filter((one) => one !== about.name);
  return h("nav", { className: "neighbours", ariaLabel: "Compare" }, h("a", { href: `#/compare?a=${name}` }, "compare with …"), rest.map((one) => h("a", { href: `#/compare?a=${name}&b=${name}&bin=${one}` }, `with ${one}`)));
}

// The other name of a neuron of a routed expert, as experts.5.12:345.
function ofExpert(name, about) {
  const [, key, unit] = /^(.+)\.(\d+)$/.exec(name);
  const number = about.experts?.[key]?.number;
  if (!number) return null;
  const width = about.layers.find((layer) => layer.name === key).units / number;
  return h("small", {}, `${key}.${Math.floor(unit / width)}:${unit % width}`);
}

function neighbours({ before, after, below, above }) {
  const link = (to, sign, said) => (to ? h("a", { href: `#/u/${to}`, title: said, rel: said }, `${sign} ${to}`) : null);
  return h("nav", { className: "neighbours", ariaLabel: "Neighbours" }, link(before, "←", "previous unit"), link(after, "→", "next unit"), link(below, "↓", "layer below"), link(above, "↑", "layer above"));
}

export function statistics(numbers) {
  const of = (count) => (numbers.count ? `${number(count)} (${share(count / numbers.count)})` : number(count));
  const facts = {
    tokens: [number(numbers.count), "counted tokens of the corpus"],
    positive: [of(numbers.positive), "tokens with a value above zero"],
    active: [of(numbers.active), "tokens with a value of at least 2^-10"],
    minimum: [number(numbers.minimum), "the lowest value"],
    mean: [number(numbers.mean), "the mean over all tokens"],
    maximum: [number(numbers.maximum), "the highest value"],
    deviation: [number(numbers.variance === null ? null : Math.sqrt(Math.max(numbers.variance, 0))), "the root of the variance over all tokens"],
    skewness: [number(numbers.skewness), "third standardised moment; 0 for a symmetric distribution"],
    kurtosis: [number(numbers.kurtosis), "fourth standardised moment; 3 for a normal distribution"],
    ...Object.fromEntries(["p01", "p10", "p50", "p90", "p99", "p999", "p9999"].map((name) => [name, [number(numbers[name]), "a quantile, known to one bin"]])),
  };
  if (numbers.nan) facts.nan = [number(numbers.nan), "tokens without a number"];
  if (numbers.inf) facts.inf = [number(numbers.inf), "tokens with an infinite value"];
  return h("dl", { className: "facts" }, Object.entries(facts).map(([name, [value, said]]) => h("div", { title: said }, h("dt", {}, name), h("dd", {}, value))));
}

const SCORES = {
  previous: "share of attention on the token before, on random tokens repeated",
  duplicate: "share on the same token, where it stood earlier",
  induction: "share on the token that came after that",
  first_token: "share on the first token of a sequence, on the panel",
  entropy: "of the attention, in nats, on the panel",
  distance: "how many tokens away, on the panel",
};

function headScores(head) {
  const scores = Object.entries(SCORES).map(([name, said]) => h("div", { title: said }, h("dt", {}, name.replace("_", " ")), h("dd", {}, number(head[name], 3))));
  return h("dl", { className: "facts", ariaLabel: "What the head looks at" }, scores);
}

function counted(bins, linear, go) {
  const most = h("small", {}, `tokens per bin, ${number(Math.max(...bins.map((bin) => bin[2]), 0))} in the highest`);
  const change = (event) => go({ counts: event.target.checked ? "linear" : undefined });
  return [most, h("label", {}, h("input", { type: "checkbox", checked: linear, onchange: change }), " linear counts")];
}

function controls(state, go, unit, widen) {
  const choice = (label, key, options) =>
    h("label", {}, label, " ", h("select", { onchange: (event) => go({ [key]: event.target.value || undefined }) }, options.map(([value, said]) => h("option", { value, selected: (state[key] ?? "") === value }, said))));
  return h(
    "div",
    { className: "controls" },
    choice("Examples", "side", [["", "all"], ...Object.entries(KINDS).map(([kind, title]) => [kind, title.toLowerCase()])]),
    choice("Layout", "wrap", [["", "aligned on the peak"], ["1", "whole windows"]]),
    context(state, unit, widen),
    bands(unit, state, go),
  );
}

// Of which octave samples are shown; a click on the histogram chooses one, too, also of which none was kept.
function bands({ samples }, state, go) {
  const kept = [...new Set([...samples.map(({ band }) => band), Number(state.band)])].filter(Number.isFinite).sort((one, other) => other - one);
  if (!kept.length) return null;
  const chosen = (event) => go(event.target.value === "" ? { band: undefined } : { band: event.target.value, side: "samples" });
  const option = (value, said) => h("option", { value, selected: String(state.band ?? "") === value }, said);
  return h("label", {}, "Samples of ", h("select", { onchange: chosen }, option("", "all bands"), kept.map((band) => option(String(band), band ? `${number(band, 3)} to ${number(2 * band, 3)}` : "the rest"))));
}

// How much of a window is shown; a window goes a third as far after its peak as before it.
function context(state, { window: [before, after] }, widen) {
  const said = (width) => (width === undefined ? `${before} + ${after}` : `${width} + ${Math.ceil(width / 3)}`);
  const told = h("output", {}, said(state.width));
  const moved = (event) => {
    const width = Number(event.target.value) < before ? event.target.value : undefined;
    told.textContent = said(width);
    widen(width);
  };
  return h("label", {}, "Context ", h("input", { type: "range", min: 0, max: before, value: state.width ?? before, oninput: moved }), " ", told);
}

// The octave that a bin lies in, as samples name it; 0 for what is in no octave.
function bandOf([lower, upper]) {
  return upper > 0 && lower > 0 ? 2 ** Math.floor(Math.log2(lower)) : 0;
}

function ofBand(examples, kind, band) {
  return band === undefined || kind !== "samples" ? examples : examples.filter((example) => example.band === Number(band));
}

export function section(title, examples, view) {
  const groups = grouped(examples);
  return h(
    "section",
    { className: "examples" },
    h("h2", {}, title, " ", h("small", {}, number(examples.length))),
    examples.length ? groups.map((group) => exampleRow(group, view)) : h("p", { className: "quiet" }, "No sample of this band is kept; its highest octaves and the rest are."),
  );
}

// Windows with the same text up to the peak stand together: one is shown, and how many there are.
function grouped(examples) {
  const groups = new Map();
  for (const example of examples) {
    const peak = example.position - example.window_start;
    const key = `${example.band}|${example.ids.slice(Math.max(0, peak - 7), peak + 1).join(" ")}`;
    groups.set(key, [...(groups.get(key) ?? []), example]);
  }
  return [...groups.values()];
}

function exampleRow(group, view) {
  const row = h("div", { className: "group" }, example(group[0], view));
  if (group.length > 1) {
    const rest = h("details", {}, h("summary", {}, `and ${group.length - 1} more with the same eight tokens`), group.slice(1).map((one) => example(one, view)));
    row.append(rest);
  }
  return row;
}

function example(found, { unit, scale, tail, mark, aligned, width, index, rankThere }) {
  const whole = found.position - found.window_start;
  const first = Math.max(0, whole - width);
  const last = whole + 1 + Math.ceil(width / 3);
  const cut = (values) => values.slice(first, last);
  const pieces = cut(found.pieces);
  const values = cut(found.activations);
  const ids = cut(found.ids);
  const document = unit.documents[found.document];
  const told = (place) => ({
    facts: factsOf(pieces[place], ids[place], values[place], tail, [
      ["position", String(found.window_start + first + place)],
      ["document", document ? document.name : String(found.document)],
      ...(found.up !== null && first + place === whole ? [["up", number(found.up)]] : []),
    ]),
    mark: () => mark(values[place]),
  });
  const line = tokenLine(pieces, values, whole - first, scale, told, aligned);
  line.ariaLabel = `${found.kind} ${number(found.value)}: ${found.pieces.join("")}`;
  const there = rankThere?.(found);
  const label = found.band === null ? `${found.rank}${there && found.kind === "top" ? ` → ${there}` : ""}` : found.band ? `≥ ${number(found.band, 3)}` : "rest";
  const from = document ? document.name : String(found.document);
  const source = h("button", { type: "button", className: "source", title: `${from}: show the whole document`, onclick: (event) => openDocument(event.target, found, unit, index) }, from.split("/").slice(-2).join("/"));
  return h("div", { className: "example" }, h("span", { className: "rank" }, label), h("span", { className: "value" }, number(found.value)), line, source);
}

async function openDocument(button, found, unit, index) {
  const row = button.closest(".example");
  const open = row.nextElementSibling;
  if (open?.classList.contains("document")) {
    open.remove();
    return;
  }
  const place = h("pre", { className: "document", tabIndex: 0 }, "…");
  row.after(place);
  try {
    // of a pair of texts the decoder reads the second
    const { text } = await ask(`document/${found.document}`, { target: unit.name.startsWith("decoder.") ? true : undefined }, undefined, index);
    // where its window is in the text, up to the peak; a tokenizer that changes letters leaves no such place
    const shown = found.pieces.slice(0, found.position - found.window_start + 1).join("").trimStart();
    const at = text.indexOf(shown);
    place.replaceChildren(...(at < 0 ? [text] : [text.slice(0, at), h("mark", {}, shown), text.slice(at + shown.length)]));
    place.querySelector("mark")?.scrollIntoView({ block: "nearest" });
  } catch (error) {
    place.textContent = error.message;
  }
}

function peaks(unit) {
  if (!unit.top.length) return null;
  const next = unit.top.filter((example) => peakOf(example) + 1 < example.ids.length);
  const at = chips(unit.top, (example) => example.token, (token) => `#/search?token=${encodeURIComponent(token)}`);
  const after = chips(next, (example) => example.pieces[peakOf(example) + 1]);
  const column = (title, found) => h("div", {}, h("h3", {}, title), found);
  return h("section", {}, h("h2", {}, "Tokens of the strongest examples"), h("div", { className: "sides" }, column("At the peak", at), column("Right after it", after)), signs(unit) ?? "");
}

const peakOf = (example) => example.position - example.window_start;

function chips(examples, of, address = undefined) {
  const counts = new Map();
  for (const example of examples) counts.set(of(example), (counts.get(of(example)) ?? 0) + 1);
  const sorted = [...counts].sort((one, other) => other[1] - one[1]);
  return h("p", { className: "chips" }, sorted.map(([token, count]) => h(address ? "a" : "span", { className: "chip", href: address?.(token) }, visible(token), " ", h("small", {}, `× ${count}`))));
}

// Of gated MLPs, how the peaks come about: a value is f(gate) times up.
function signs(unit) {
  const cases = [...unit.top, ...unit.bottom].filter(({ up }) => up !== null).map(({ value, up }) => `f(gate) ${value * up > 0 ? ">" : "≤"} 0, up ${up > 0 ? ">" : "≤"} 0`);
  if (!cases.length) return null;
  return h("p", { className: "quiet" }, "Signs at the peaks of the strongest and lowest: ", [...new Set(cases)].map((one) => `${one}: ${cases.filter((other) => other === one).length}`).join("; "));
}

function tryText(unit, view, signal) {
  const out = h("div", { className: "tried" });
  let last = null;
  const changed = async (event) => {
    last?.abort();
    last = new AbortController();
    try {
      const answer = await run(event.target.value, [unit.name], last.signal);
      out.replaceChildren(pinnedLine(answer, answer.pinned[0], view.scale, view.tail, view.mark));
    } catch (error) {
      if (error.name !== "AbortError") out.replaceChildren(h("p", { className: "error" }, error.message));
    }
  };
  signal?.addEventListener("abort", () => last?.abort());
  return h("section", {}, h("h2", {}, "Try a text"), h("label", {}, "Text ", h("textarea", { rows: 3, oninput: changed, placeholder: "Type or paste a text to see what this unit does at its tokens" })), out);
}

// more: further facts of a token, by its place.
export function pinnedLine(answer, pin, scale, tail, mark, more = () => []) {
  const pieces = answer.tokens.map((token) => token.piece);
  const peak = pin.values.reduce((best, value, place) => (answer.tokens[place].counted && (best < 0 || value > pin.values[best]) ? place : best), -1);
  const told = (place) => ({
    facts: factsOf(pieces[place], answer.tokens[place].id, pin.values[place], tail ?? (() => pin.shares[place]), more(place)),
    mark: () => mark?.(pin.values[place]),
  });
  return tokenLine(pieces, pin.values, peak, scale, told, false);
}
