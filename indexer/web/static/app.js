// Which page an address names, and the keys that work on all of them. An address keeps all of a page's state.

import { comparePage } from "./compare.js";
import { h, visible } from "./dom.js";
import { aboutPage, layerAddress, layersPage } from "./pages.js";
import { searchPage } from "./search.js";
import { ask, asked, takeToken } from "./source.js";
import { sqlPage } from "./sql.js";
import { textPage } from "./text.js";
import { installTips } from "./tokens.js";
import { KINDS, WIDTHS, unitPage } from "./unit.js";
import { unitsPage } from "./units.js";

const PAGES = { "": layersPage, units: unitsPage, search: searchPage, text: textPage, compare: comparePage, sql: sqlPage, about: aboutPage };
const KEYS = {
  "/": "jump to a unit, to the units of a layer, or to a text in examples", "← →": "previous, next unit", "↓ ↑": "layer below, above", "j k": "next, previous example",
  s: "strongest, samples, lowest, or all", c: "more or less context", w: "aligned or whole windows", Esc: "close what is open, leave a field", "?": "these keys",
};
const UNIT = /[./:]\d+$/;
const main = document.getElementById("main");
const jump = document.getElementById("where");
let about = null;
let leaving = new AbortController();

function address() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const state = {};
  for (const [name, value] of new URLSearchParams(query)) state[name] = name in state ? [state[name], value].flat() : value;
  const [page, ...rest] = path.split("/");
  return { page, name: decodeURIComponent(rest.join("/")), state, path };
}

function written(path, state) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) for (const one of [value].flat()) if (one !== undefined) query.append(name, one);
  return `#/${path}${query.size ? `?${query}` : ""}`;
}

async function open() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const { page, name, state, path } = address();
  document.getElementById("tip").hidden = true;
  document.body.classList.toggle("embed", Boolean(state.embed));
  for (const link of document.querySelectorAll("header nav a")) link.toggleAttribute("aria-current", link.hash === `#/${page}`);
  jump.value = page === "u" ? name : "";
  const go = (changes) => { location.hash = written(path, { ...state, ...changes }); };
  const replace = (changes) => history.replaceState(null, "", written(path, Object.assign(state, changes)));
  asked.clear();
  document.getElementById("foot").replaceChildren();
  try {
    if (!about) {
      about = await ask("about");
      listIndexes();
    }
    compareVersions(state);
    const show = page === "u" ? unitPage : PAGES[page];
    if (!show) throw new Error(`There is no page "${page}".`);
    await show(main, { name, state, go, replace, about, signal });
    foot(go);
  } catch (error) {
    if (error.name === "AbortError") return;
    main.replaceChildren(h("h1", {}, "That did not work"), h("p", { className: "error", role: "alert" }, error.message));
  }
}

// With several indexes, a way to each of them that keeps the page.
function listIndexes() {
  if (!about.indexes?.length) return;
  const chosen = (event) => { location.href = `../${event.target.value}/${location.hash}`; };
  const list = h("select", { onchange: chosen }, about.indexes.map((name) => h("option", { value: name, selected: name === about.name }, name)));
  document.getElementById("jump").before(h("label", {}, "Index ", list));
}

// An address with at= was made for one version of the index: said where this is another.
function compareVersions({ at }) {
  const wanted = [at ?? ""].flat()[0];
  const note = document.getElementById("version");
  note.hidden = wanted === about.digest.slice(0, wanted.length);
  note.textContent = note.hidden ? "" : `This address is of version ${visible(wanted.slice(0, 64))} of the index. Here is ${about.digest.slice(0, 8)}, made ${about.created}: what it shows may differ.`;
}

// The answers behind the page as JSON, and its address with the version of the index in it.
function foot(go) {
  const said = (where) => visible(decodeURIComponent(where.split("?")[0].replace(/^\.\.\//, "").replace("api/", "")));
  const links = [...asked].map((where) => h("a", { href: where }, `${said(where)} as JSON`));
  const pin = h("button", { type: "button", title: "The address then says of which version of the index it is", onclick: () => go({ at: about.digest.slice(0, 8) }) }, `Version ${about.digest.slice(0, 8)}: keep it in the address`);
  document.getElementById("foot").replaceChildren(...links, address().state.at === undefined ? pin : "");
}

function walk(step) {
  const lines = [...main.querySelectorAll(".example .line")];
  const here = lines.indexOf(document.activeElement);
  lines[Math.max(0, Math.min(lines.length - 1, here + step))]?.focus();
}

// The choice that follows the present one; after the last the first, which the address leaves out.
const next = (choices, present) => choices[(choices.indexOf(present) + 1) % choices.length];

function help() {
  const box = h("dialog", { onclose: () => box.remove() }, h("h2", {}, "Keys"), h("dl", {}, Object.entries(KEYS).map(([key, said]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, said)])), h("form", { method: "dialog" }, h("button", {}, "Close")));
  document.body.append(box);
  box.showModal();
}

function close() {
  document.getElementById("tip").hidden = true;
  document.activeElement?.blur();
  for (const open of main.querySelectorAll("pre.document")) open.remove();
}

takeToken();
// before the keys of the page: within an example the arrows walk over its tokens
installTips();

document.addEventListener("keydown", (event) => {
  if (event.target.closest?.("input, textarea, select, dialog") || event.ctrlKey || event.metaKey || event.altKey) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const { page, state, path } = address();
  const change = (changes) => { location.hash = written(path, { ...state, ...changes }); };
  const links = { ArrowLeft: "previous unit", ArrowRight: "next unit", ArrowDown: "layer below", ArrowUp: "layer above" };
  if (event.key === "/") jump.select();
  else if (event.key === "?") help();
  else if (event.key === "Escape") close();
  else if (event.key === "j" || event.key === "k") walk(event.key === "j" ? 1 : -1);
  else if (event.key === "w" && page === "u") change({ wrap: state.wrap === "1" ? undefined : "1" });
  else if (event.key === "c" && page === "u") change({ width: next(WIDTHS, state.width) });
  else if (event.key === "s" && page === "u") change({ side: next([undefined, ...Object.keys(KINDS)], state.side) });
  else if (links[event.key] && page === "u") {
    const link = main.querySelector(`a[rel="${links[event.key]}"]`);
    if (!link) return;
    // what is set on a page stays set on the next one
    location.hash = `${link.hash}${new URLSearchParams(location.hash.split("?")[1]).size ? `?${location.hash.split("?")[1]}` : ""}`;
  } else return;
  event.preventDefault();
});

document.getElementById("jump").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = jump.value.trim();
  const layer = about?.layers.find(({ name }) => name === given);
  if (layer) location.hash = layerAddress(layer);
  else if (UNIT.test(given)) location.hash = `#/u/${encodeURIComponent(given).replaceAll("%2F", "/")}`;
  else if (given) location.hash = `#/search?text=${encodeURIComponent(given)}`;
  jump.blur();
});

addEventListener("hashchange", open);
open();
