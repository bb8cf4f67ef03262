// The lexiscope: texts are edited, one or two side by side, and the units that are rare at their tokens change at once.

import { h, number, share, table, visible } from "./dom.js";
import { run, runBoth } from "./source.js";
import { scaleOf } from "./tokens.js";
import { pinnedLine } from "./unit.js";

export async function textPage(main, { state, go, replace, about, signal }) {
  document.title = "Text - neuron index";
  main.replaceChildren(h("h1", {}, "Text"));
  if (!about.live) {
    main.append(h("p", {}, about.static ? "These pages have no server, so no text can be run. Copy the index and run neuron-indexer serve with --model." : "No model is loaded. Start the server with --model to run texts of your own."));
    return;
  }
  let pinned = [state.pin ?? []].flat();
  let chosen = state.token === undefined ? -1 : Number(state.token);
  let answer = null;
  let asked = null;
  let running = false;
  let stale = false;
  const two = state.other !== undefined;
  // what never occurred is rarer than what occurred once
  const least = 0.5 / Math.max(about.totals.counted_tokens ?? 1, 1);

  const tokens = h("div", { className: two ? "text pairs" : "text", ariaLabel: "Tokens of the text" });
  const units = h("section", { className: "units", ariaLive: "polite" });
  const pins = h("section", { className: "pins" });
  const note = h("p", { className: "quiet", role: "status" });
  const keep = () => replace({ text: area.value || undefined, other: two ? other.value : undefined, pin: pinned.length ? pinned : undefined, token: chosen < 0 ? undefined : String(chosen) });

  async function ran() {
    asked?.abort();
    asked = new AbortController();
    keep();
    try {
      const begun = performance.now();
      const found = two ? await runBoth([area.value, other.value], pinned, asked.signal) : { texts: [await run(area.value, pinned, asked.signal)] };
      answer = { ...found, places: found.pairs ?? found.texts[0].tokens.map((token, place) => ({ places: [place], units: token.units })) };
      const counts = found.texts.map((text) => number(text.tokens.length)).join(" and ");
      note.textContent = `${counts} tokens in ${Math.round(performance.now() - begun)} ms` + (found.texts.some(({ cut }) => cut) ? `; cut off at ${found.texts[0].context}, the context of the index` : "");
      draw();
    } catch (error) {
      if (error.name !== "AbortError") note.textContent = error.message;
    }
  }

  // What stands at a place: a token of each text, or none of one of them.
  const tokensAt = (at) => answer.places[at].places.map((place, text) => (place === null ? null : answer.texts[text].tokens[place]));
  // How far each place stands out, from 0 to 1: by how rare its rarest unit is, or by how much rarities differ, against where they do most.
  function heats() {
    if (!two) return answer.places.map(({ units }) => (units.length ? Math.min(-Math.log10(Math.max(units[0].share, least)) / 7, 1) : 0));
    const ratios = answer.places.map(({ units }) => units.reduce((sum, { shares }) => sum + Math.abs(Math.log(Math.max(shares[0], least) / Math.max(shares[1], least))), 0));
    const most = Math.max(...ratios, 1e-9);
    return ratios.map((ratio) => (ratio / most) ** 3);
  }

  function draw() {
    if (chosen >= answer.places.length) chosen = -1;
    const heat = heats();
    tokens.replaceChildren(...heat.map((one, at) => word(tokensAt(at), one, at === chosen, () => choose(at))));
    const at = chosen < 0 ? heat.indexOf(Math.max(...heat)) : chosen;
    units.replaceChildren(...(at < 0 ? [h("h2", {}, "Units"), h("p", { className: "quiet" }, "Type a text; special tokens are not counted.")] : unitsAt(at)));
    pins.replaceChildren(pinned.length ? h("h2", {}, "Pinned") : "", ...answer.texts[0].pinned.map((_, place) => pinRow(place)));
  }

  function unitsAt(at) {
    const found = tokensAt(at);
    const pair = found.length > 1 && found.every((token) => token);
    const quoted = found.filter((token) => token).flatMap((token, place) => [place ? " and " : "", h("q", {}, visible(token.piece))]);
    const listed = pair ? answer.places[at].units : found.find((token) => token).units;
    const pinButton = (name) => h("button", { type: "button", onclick: () => pin(name) }, pinned.includes(name) ? "unpin" : "pin");
    return [
      h("h2", {}, pair ? "Units that differ most between " : "Units that are rare at ", quoted),
      !listed.length
        ? h("p", { className: "quiet" }, found.every((token) => token?.counted !== true) ? "It is not counted." : "No unit does anything else there.")
        : pair
          ? pairTable(listed, pinButton)
          : h("ol", { className: "rare" }, listed.map((unit) => h("li", {}, h("a", { href: `#/u/${unit.name}` }, unit.name), ` ${number(unit.value)} `, h("small", {}, `above: ${share(unit.share)} `), pinButton(unit.name)))),
    ];
  }

  function pinRow(place) {
    const of = answer.texts.map((text) => text.pinned[place]);
    const scale = scaleOf(of[0].minimum, of[0].maximum);
    const largest = two ? largestChange(of, answer) : null;
    return h(
      "div",
      { className: "pin" },
      h("a", { href: `#/u/${of[0].name}` }, of[0].name),
      h("button", { type: "button", ariaLabel: `Unpin ${of[0].name}`, onclick: () => pin(of[0].name) }, "×"),
      of.map((one, text) => pinnedLine(answer.texts[text], one, scale, undefined, undefined, two ? (at) => changeAt(of, answer, text, at) : undefined)),
      largest && h("p", { className: "quiet" }, "Differs most at ", h("q", {}, visible(answer.texts[0].tokens[largest.places[0]].piece)), " and ", h("q", {}, visible(answer.texts[1].tokens[largest.places[1]].piece)), `: ${number(largest.values[0])}, ${number(largest.values[1])}, difference ${signed(largest.values[1] - largest.values[0])}.`),
    );
  }

  function choose(place) {
    chosen = place === chosen ? -1 : place;
    keep();
    draw();
  }

  function pin(name) {
    pinned = pinned.includes(name) ? pinned.filter((one) => one !== name) : [...pinned, name];
    ran();
  }

  // what is typed while a text runs is run when that is done
  async function typed() {
    stale = running;
    if (running) return;
    running = true;
    do {
      stale = false;
      await ran();
    } while (stale && !signal.aborted);
    running = false;
  }
  const field = (value, label) => h("textarea", { rows: 4, value, spellcheck: false, ariaLabel: label, placeholder: "Type or paste a text", oninput: typed });
  const area = field(state.text ?? "", "Text");
  const other = two ? field(state.other, "Second text") : null;
  const switched = () => go({ text: area.value || undefined, other: two ? undefined : area.value, pin: pinned.length ? pinned : undefined, token: undefined });
  signal.addEventListener("abort", () => asked?.abort());
  main.append(h("div", { className: "sides" }, area, other), h("p", { className: "controls" }, h("button", { type: "button", onclick: switched }, two ? "One text alone" : "Beside a second text"), note), tokens, units, pins);
  if (area.value || other?.value) await ran();
  (other ?? area).focus();
}

const signed = (value) => `${value > 0 ? "+" : ""}${number(value)}`;

// Tokens that belong together stand below each other, and where they are not the same the pair has a frame.
function word(found, heat, pressed, chosen) {
  const different = found.length > 1 && found[0]?.id !== found[1]?.id;
  const said = found.length > 1 ? "what differs most here" : "what is rare here";
  const parts = found.length > 1 ? found.map((token) => h("span", {}, token ? visible(token.piece) : "·")) : visible(found[0].piece);
  const node = h("button", { type: "button", className: different ? "word different" : "word", ariaPressed: String(pressed), title: said, onclick: chosen }, parts);
  node.style.setProperty("--heat", heat.toFixed(3));
  return node;
}

function pairTable(units, pinButton) {
  const cells = ({ name, values, shares }) => [h("a", { href: `#/u/${name}` }, name), number(values[0]), number(values[1]), signed(values[1] - values[0]), share(shares[0]), share(shares[1]), pinButton(name)];
  return table(["unit", "first text", "second text", "difference", "above the first", "above the second", "watch"], units.map(cells));
}

// Of a pinned unit the pairs of counted tokens with its values at both.
const valuesOf = (of, { places, texts }) =>
  places
    .filter((pair) => pair.places.every((place, text) => place !== null && texts[text].tokens[place].counted && of[text].values.length))
    .map((pair) => ({ places: pair.places, values: pair.places.map((place, text) => of[text].values[place]) }));

function largestChange(of, answer) {
  const sorted = valuesOf(of, answer).sort((one, other) => Math.abs(other.values[1] - other.values[0]) - Math.abs(one.values[1] - one.values[0]));
  return sorted[0];
}

// What the tooltip of a token of one text adds: the value at its partner in the other, and the difference.
function changeAt(of, answer, text, at) {
  const pair = valuesOf(of, answer).find(({ places }) => places[text] === at);
  return pair ? [[text ? "in the first text" : "in the second text", number(pair.values[1 - text])], ["difference", signed(pair.values[1] - pair.values[0])]] : [];
}
