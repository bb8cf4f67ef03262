// The lexiscope: a text is edited, and the units that are rare at its tokens change at once.

import { h, number, share, visible } from "./dom.js";
import { run } from "./source.js";
import { scaleOf } from "./tokens.js";
import { pinnedLine } from "./unit.js";

const WAIT = 120;

export async function textPage(main, { state, replace, about, signal }) {
  document.title = "Text - neuron index";
  main.replaceChildren(h("h1", {}, "Text"));
  if (!about.live) {
    main.append(h("p", {}, about.static ? "These pages have no server, so no text can be run. Copy the index and run neuron-indexer serve with --model." : "No model is loaded. Start the server with --model to run texts of your own."));
    return;
  }
  let pinned = [state.pin ?? []].flat();
  let chosen = state.at === undefined ? -1 : Number(state.at);
  let answer = null;
  let asked = null;
  let timer = 0;

  const tokens = h("div", { className: "text", ariaLabel: "Tokens of the text" });
  const units = h("section", { className: "units", ariaLive: "polite" });
  const pins = h("section", { className: "pins" });
  const note = h("p", { className: "quiet", role: "status" });
  const keep = () => replace({ text: area.value || undefined, pin: pinned.length ? pinned : undefined, at: chosen < 0 ? undefined : String(chosen) });

  async function ran() {
    asked?.abort();
    asked = new AbortController();
    keep();
    try {
      const begun = performance.now();
      answer = await run(area.value, pinned, asked.signal);
      note.textContent = `${number(answer.tokens.length)} tokens in ${Math.round(performance.now() - begun)} ms` + (answer.cut ? `; cut off at ${answer.context}, the context of the index` : "");
      draw();
    } catch (error) {
      if (error.name !== "AbortError") note.textContent = error.message;
    }
  }

  function draw() {
    tokens.replaceChildren(
      ...answer.tokens.map((token, place) => {
        const rare = token.units[0]?.share;
        const node = h("button", { type: "button", className: "word", ariaPressed: String(place === chosen), title: token.units[0] ? `${token.units[0].name}; tokens above: ${share(rare)}` : "not counted", onclick: () => choose(place) }, visible(token.piece));
        node.style.setProperty("--heat", rare === undefined ? 0 : Math.min(Math.max(-Math.log10(Math.max(rare, 1e-7)) / 7, 0), 1).toFixed(3));
        return node;
      }),
    );
    if (chosen >= answer.tokens.length) chosen = -1;
    const at = chosen < 0 ? rarestPlace() : chosen;
    const token = answer.tokens[at];
    units.replaceChildren(
      h("h2", {}, token ? ["Units that are rare at ", h("q", {}, visible(token.piece))] : "Units"),
      token?.units.length
        ? h("ol", { className: "rare" }, token.units.map((unit) => h("li", {}, h("a", { href: `#/u/${unit.name}` }, unit.name), ` ${number(unit.value)} `, h("small", {}, `above: ${share(unit.share)} `), h("button", { type: "button", onclick: () => pin(unit.name) }, pinned.includes(unit.name) ? "unpin" : "pin"))))
        : h("p", { className: "quiet" }, "Type a text; special tokens are not counted."),
    );
    pins.replaceChildren(
      answer.pinned.length ? h("h2", {}, "Pinned") : "",
      ...answer.pinned.map((one) => {
        const scale = scaleOf(one.minimum, one.maximum);
        return h("div", { className: "pin" }, h("a", { href: `#/u/${one.name}` }, one.name), h("button", { type: "button", ariaLabel: `Unpin ${one.name}`, onclick: () => pin(one.name) }, "×"), pinnedLine(answer, one, scale));
      }),
    );
  }

  function rarestPlace() {
    const shares = answer.tokens.map((token) => token.units[0]?.share ?? Infinity);
    return shares.length ? shares.indexOf(Math.min(...shares)) : -1;
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

  const area = h("textarea", { rows: 4, value: state.text ?? "", spellcheck: false, placeholder: "Type or paste a text", oninput: () => { clearTimeout(timer); timer = setTimeout(ran, WAIT); } });
  signal.addEventListener("abort", () => asked?.abort());
  main.append(h("label", {}, "Text", area), note, tokens, units, pins);
  if (area.value) await ran();
  area.focus();
}
