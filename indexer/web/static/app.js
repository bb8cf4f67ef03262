// Which page an address names, and the keys that work on all of them. An address keeps all of a page's state.

import { comparePage } from "./compare.js";
import { h } from "./dom.js";
import { aboutPage, layersPage, searchPage, unitsPage } from "./pages.js";
import { ask, takeToken } from "./source.js";
import { sqlPage } from "./sql.js";
import { textPage } from "./text.js";
import { installTips } from "./tokens.js";
import { unitPage } from "./unit.js";

const PAGES = { "": layersPage, units: unitsPage, search: searchPage, text: textPage, compare: comparePage, sql: sqlPage, about: aboutPage };
const KEYS = { "/": "jump to a unit", "← →": "previous, next unit", "↓ ↑": "layer below, above", "j k": "next, previous example", w: "aligned or whole windows", "?": "these keys" };
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
  const replace = (changes) => history.replaceState(null, "", written(path, { ...state, ...changes }));
  try {
    if (!about) {
      about = await ask("about");
      listIndexes();
    }
    const show = page === "u" ? unitPage : PAGES[page];
    if (!show) throw new Error(`There is no page "${page}".`);
    await show(main, { name, state, go, replace, about, signal });
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

function walk(step) {
  const lines = [...main.querySelectorAll(".example .line")];
  const here = lines.indexOf(document.activeElement);
  lines[Math.max(0, Math.min(lines.length - 1, here + step))]?.focus();
}

function help() {
  const box = h("dialog", { onclose: () => box.remove() }, h("h2", {}, "Keys"), h("dl", {}, Object.entries(KEYS).map(([key, said]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, said)])), h("form", { method: "dialog" }, h("button", {}, "Close")));
  document.body.append(box);
  box.showModal();
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
  const links = { ArrowLeft: "previous unit", ArrowRight: "next unit", ArrowDown: "layer below", ArrowUp: "layer above" };
  if (event.key === "/") jump.select();
  else if (event.key === "?") help();
  else if (event.key === "j" || event.key === "k") walk(event.key === "j" ? 1 : -1);
  else if (event.key === "w" && page === "u") location.hash = written(path, { ...state, wrap: state.wrap === "1" ? undefined : "1" });
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
  if (jump.value.trim()) location.hash = `#/u/${encodeURIComponent(jump.value.trim()).replaceAll("%2F", "/")}`;
  jump.blur();
});

addEventListener("hashchange", open);
open();
